// The state in memory, written to the database now and then as of one LSN; the journal behind it is released.
import { FULL_MASK, popcount } from '../chunk/geometry.js'
import { CHECKPOINTED, NAMED, type Row, SEALED, VERIFIED } from './chunk-table.js'
import { sumOf } from './content.js'
import { chunkKey, idKey, inodeKey, type Meta, nameDbKey, type Write } from './database.js'
import { type Ino, ROOT } from './filesystem.js'
import type { Inode } from './inode.js'
import { Changes, nameKey, type TreeState } from './state.js'

/** Checksums made for one checkpoint at most: the rest follows with the next, so that the loop is not held up. */
const SUMS_MAX = 256

const changesRecord = (changes: Changes): Meta['open'] => ({
  names: [...changes.names.values()].map(change => [change.parent, change.name, change.base]),
  inodes: [...changes.inodes],
  orphans: [...changes.orphans],
  operations: changes.operations,
  sinceMs: changes.sinceMs,
})

/** Data first, then the database, then the journal may forget. One at a time. */
export async function checkpoint(state: TreeState): Promise<void> {
  const { journal, slots, database } = state
  const token = slots.beginCheckpoint()
  const lsn = journal.headLsn
  const sealed = sealedRows(state)
  const { writes, inodes, removed, putBack } = collect(state)
  const meta = metaOf(state, lsn)
  try {
    await slots.sync()
    await database.write(writes, meta)
  } catch (error) {
    putBack()
    throw error
  }
  // Those that changed meanwhile are not in the database as they are.
  for (const inode of inodes) if (!state.persistInodes.has(inode)) inode.durable = true
  for (const ino of removed) state.gone.delete(ino)
  journal.release(lsn)
  // No record that replay would look at names these slots any more.
  for (const [row, slot] of sealed) if (state.chunks.slot[row] === slot) state.chunks.flags[row] &= ~SEALED
  await slots.finishCheckpoint(token)
}

export const checkpointDue = (state: TreeState): number =>
  state.persistInodes.size +
  state.persistRows.size +
  state.persistDentries.size +
  state.removedRows.length +
  state.removedInodes.length

const sealedRows = (state: TreeState): [Row, number][] =>
  [...state.persistRows].filter(row => state.chunks.flags[row] & SEALED).map(row => [row, state.chunks.slot[row]])

interface Collected {
  writes: Write[]
  /** Known to the database once it is written; until then a record that names one of them must bring it along. */
  inodes: Inode[]
  /** Not known to it any more. */
  removed: Ino[]
  /** It was not written: the next checkpoint has to. */
  putBack(): void
}

function collect(state: TreeState): Collected {
  const { chunks } = state
  const writes: Write[] = []
  const inodes = [...state.persistInodes]
  const dentries = [...state.persistDentries]
  const rows = [...state.persistRows].map(row => ({ row, ino: chunks.ino[row], index: chunks.index[row] }))
  const removedRows = [...state.removedRows]
  const removedInodes = [...state.removedInodes]
  const putBack = () => {
    for (const inode of inodes) if (state.inodes.get(inode.ino) === inode) state.persistInodes.add(inode)
    for (const [key, dentry] of dentries) state.persistDentries.set(key, dentry)
    // A row may be another chunk's by now.
    for (const { row, ino, index } of rows) if (chunks.find(ino, index) === row) state.persistRows.add(row)
    for (const row of removedRows) state.removedRows.push(row)
    for (const ino of removedInodes) state.removedInodes.push(ino)
  }
  for (const { ino, index } of state.removedRows) writes.push({ key: chunkKey(ino, index), remove: true })
  for (const ino of state.removedInodes) writes.push({ key: inodeKey(ino), remove: true })
  for (const inode of state.persistInodes) {
    writes.push({ key: inodeKey(inode.ino), value: inode.toRecord() })
    if (inode.id) writes.push({ key: idKey(inode.id), value: inode.ino })
  }
  for (const { parent, name } of state.persistDentries.values()) {
    const directory = state.inodes.get(parent)
    const dentry = directory?.children?.get(name)
    const key = nameDbKey(parent, name)
    writes.push(dentry ? { key, value: [dentry.ino, dentry.type, dentry.cookie] } : { key, remove: true })
  }
  let sums = 0
  for (const row of state.persistRows) {
    const clean = chunks.dirty[row] === 0 && chunks.flight[row] === 0
    if (clean && chunks.sumLow[row] === 0 && chunks.sumHigh[row] === 0 && chunks.valid[row] && sums++ < SUMS_MAX) {
      const sum = sumOf(state, row)
      chunks.sumLow[row] = sum.low
      chunks.sumHigh[row] = sum.high
    }
    chunks.flags[row] |= NAMED | CHECKPOINTED
    writes.push({
      key: chunkKey(chunks.ino[row], chunks.index[row]),
      value: [
        chunks.slot[row],
        chunks.valid[row],
        chunks.dirty[row],
        chunks.flight[row],
        chunks.flightSlot[row],
        chunks.sumLow[row],
        chunks.sumHigh[row],
      ],
    })
  }
  state.removedRows.length = 0
  state.removedInodes.length = 0
  state.persistInodes.clear()
  state.persistDentries.clear()
  state.persistRows.clear()
  return { writes, inodes, removed: removedInodes, putBack }
}

function metaOf(state: TreeState, lsn: number): Meta {
  return {
    lsn,
    serial: state.journal.serial,
    inoReserved: state.reserveInos(),
    batch: state.batch,
    flightBatch: state.flightBatch,
    open: changesRecord(state.open),
    flight: state.flight && changesRecord(state.flight),
    quarantine: [...state.quarantine].map(([ino, { path, code, detail }]) => [ino, path, code, detail]),
    conflicts: state.conflicts.map(({ path, keptAs, atMs }) => [path, keptAs, atMs]),
    nameless: [...state.inodes.values()]
      .filter(({ ino, parent }) => parent === 0 && ino !== ROOT)
      .map(({ ino }) => ino),
    outcomes: state.outcomes.toRecord(),
  }
}

/** The state as of the last checkpoint. Returns its LSN. */
export function restore(state: TreeState, meta: Meta): number {
  const { chunks, database, slots } = state
  state.nextIno = meta.inoReserved
  state.inoReserved = meta.inoReserved
  state.batch = meta.batch
  state.flightBatch = meta.flightBatch
  state.open = changesOf(meta.open)
  state.flight = meta.flight && changesOf(meta.flight)
  // In memory for as long as somebody has them open: whether their chunks may leave depends on it.
  for (const ino of meta.nameless ?? []) state.find(ino)
  for (const { ino, index, chunk } of database.chunks()) {
    const row = chunks.add(ino, index)
    chunks.flags[row] = NAMED | CHECKPOINTED
    ;[
      chunks.slot[row],
      chunks.valid[row],
      chunks.dirty[row],
      chunks.flight[row],
      chunks.flightSlot[row],
      chunks.sumLow[row],
      chunks.sumHigh[row],
    ] = chunk
    chunks.written[row] = FULL_MASK
    if (chunks.slot[row]) slots.markHeld(chunks.slot[row])
    state.pages += popcount(chunks.valid[row])
    state.dirtyPages += popcount(chunks.dirty[row]) + popcount(chunks.flight[row])
    if (chunks.flight[row] && chunks.flightSlot[row] !== chunks.slot[row]) {
      slots.markHeld(chunks.flightSlot[row])
      state.pages += popcount(chunks.flight[row])
    }
    if (chunks.dirty[row]) state.open.rows.add(row)
    if (chunks.flight[row]) state.flight?.rows.add(row)
    if (chunks.dirty[row] || chunks.flight[row]) chunks.flags[row] |= VERIFIED
    else state.settleRow(row)
  }
  if (meta.outcomes) state.outcomes.take(meta.outcomes)
  for (const [ino, path, code, detail] of meta.quarantine) state.quarantine.set(ino, { path, code, detail })
  state.conflicts = meta.conflicts.map(([path, keptAs, atMs]) => ({ path, keptAs, atMs }))
  return meta.lsn
}

function changesOf(record: Meta['open']): Changes {
  const changes = new Changes()
  for (const [parent, name, base] of record.names) changes.names.set(nameKey(parent, name), { parent, name, base })
  for (const ino of record.inodes) changes.inodes.add(ino)
  for (const ino of record.orphans) changes.orphans.add(ino)
  changes.operations = record.operations
  changes.sinceMs = record.sinceMs
  return changes
}
