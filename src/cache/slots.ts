// The one sparse data file: slot i is CHUNK_BYTES at i * CHUNK_BYTES. Slot 0 holds the file's header.
import { strict as assert } from 'node:assert'
import { FerryError, toFerryError } from '../base/errors.js'
import { GroupSync } from '../base/group-sync.js'
import { CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES } from '../chunk/geometry.js'
import type { Storage, StorageFile } from './storage.js'

export interface SlotsOptions {
  /** Bytes that freed slots may keep on the disk until they are used again. Default 0. */
  warmBytesMax?: number
  /** Where the file ends at most. It is sparse: this bounds its slots, not the disk's space. Default 16 TiB, ext4's limit. */
  bytesMax?: number
}

const NAME = 'data'
const MAGIC = 'PFSLOTS\0'
const MAJOR = 1
const MINOR = 0
const HEADER_BYTES = 24
const BYTES_MAX = 16 * 1024 ** 4 - CHUNK_BYTES
/** So many slots are punched before others have their turn: tens of microseconds each, also of one hole. */
const PUNCHED_PER_TURN = 32
const WORD_BITS = 32
/** A freed slot is noted as one number: `slot * FREED_PAGES + pages`. */
const FREED_PAGES = 64
const slotOf = (freed: number) => Math.floor(freed / FREED_PAGES)
const DONE = Promise.resolve()

export class Slots {
  readonly #file: StorageFile
  readonly #limit: number
  readonly #group = new GroupSync(() => this.#syncNow())
  /** A bit for each slot that is not free. */
  #taken = new Uint32Array(64)
  /** No word below this one has a free slot. */
  #wordHint = 0
  #takenCount = 1
  #slotsMax = 0
  /** Freed and not reusable yet, in the order in which they were freed: from `#freedFrom` to `#freedTo`. */
  #freed = new Float64Array(64)
  #freedFrom = 0
  #freedTo = 0
  /** How many ever left that queue: tokens count all that ever entered it. */
  #freedBefore = 0
  /**
   * Free slots, by their pages, that have no hole: they are about to be used again, by the next journal of a database for instance. A
   * hole takes 100 us, since the kernel first writes what it is about to throw away.
   */
  readonly #warm = new Map<number, number>()
  #warmPages = 0
  readonly #warmPagesMax: number
  /** How many rows have a slot that several have, or had since a checkpoint: its bytes stay as they are. */
  readonly #shared = new Map<number, number>()
  /** Of these, with one row left: how many checkpoints had begun by then. */
  readonly #sole = new Map<number, number>()
  #checkpoints = 0
  #punching: Promise<void> | undefined
  /** Runs of slots whose hole is due, as first slot and count. */
  readonly #holes: number[] = []
  #dirty = false
  #failure: FerryError | undefined
  #closed = false

  private constructor(file: StorageFile, limit: number, warmPagesMax: number) {
    this.#file = file
    this.#limit = limit
    this.#warmPagesMax = warmPagesMax
    this.#taken[0] = 1
  }

  /**
   * Opens or creates the data file. No slot is in use but those that `markUsed` then names.
   * @throws BAD_FORMAT, TOO_NEW
   */
  static open(storage: Storage, { bytesMax = BYTES_MAX, warmBytesMax = 0 }: SlotsOptions = {}): Slots {
    const file = storage.open(NAME)
    try {
      const slots = new Slots(file, Math.floor(bytesMax / CHUNK_BYTES), Math.floor(warmBytesMax / PAGE_BYTES))
      if (isNew(file)) {
        file.writeSync(encodeHeader(), 0)
        slots.#dirty = true
      }
      return slots
    } catch (error) {
      file.close()
      throw error
    }
  }

  /** Slots in use or pending. */
  get usedSlots(): number {
    return this.#takenCount - 1
  }

  /** The highest slot that was ever in use. */
  get slotsMax(): number {
    return this.#slotsMax
  }

  /** Slots that were freed and wait for a checkpoint, or for their hole. */
  get pendingSlots(): number {
    let holes = 0
    for (let i = 1; i < this.#holes.length; i += 2) holes += this.#holes[i]
    return this.#freedTo - this.#freedFrom + holes
  }

  /** Something was written since the last sync began. */
  get dirtySinceSync(): boolean {
    return this.#dirty
  }

  /** The lowest free slot; what it reads as is undefined. NO_SPACE when the file must not grow any more. */
  take(): number {
    let word = this.#wordHint
    while (word < this.#taken.length && this.#taken[word] === 0xffff_ffff) word++
    this.#wordHint = word
    const bits = word < this.#taken.length ? this.#taken[word] : 0
    const slot = word * WORD_BITS + 31 - Math.clz32(~bits & (bits + 1))
    if (slot >= this.#limit)
      throw new FerryError('NO_SPACE', { detail: `the cache's data file is limited to ${this.#limit} chunks` })
    this.#set(slot)
    this.#cool(slot)
    return slot
  }

  /** At the start: the database or a journal record names this slot. Again is fine. BAD_FORMAT when there can be no such slot. */
  markUsed(slot: number): void {
    if (!(Number.isSafeInteger(slot) && slot > 0 && slot < this.#limit))
      throw new FerryError('BAD_FORMAT', { detail: `there is no slot ${slot} in the cache's data file` })
    if (this.isUsed(slot)) return
    this.#set(slot)
    this.#cool(slot)
  }

  /**
   * After the start, when every used slot is marked: gives back what a crash left in the others, in turns. Without it that space
   * stays taken until the slots are used again.
   * @returns when it is done. Never rejects
   */
  reclaim(): Promise<void> {
    const end = this.#slotsMax + 1
    this.#punch(end, this.#limit - end)
    for (let slot = 1; slot < end; ) {
      const word = Math.floor(slot / WORD_BITS)
      if (this.#taken[word] === 0xffff_ffff) {
        slot = (word + 1) * WORD_BITS
        continue
      }
      const first = slot
      for (; slot < end && !this.isUsed(slot); slot++) this.#set(slot)
      if (slot > first) this.#holes.push(first, slot - first)
      else slot++
    }
    return this.#punchDue()
  }

  /** At the start: the database has a row with this slot, and perhaps another one. */
  markHeld(slot: number): void {
    if (this.isUsed(slot)) this.share(slot)
    else this.markUsed(slot)
  }

  isUsed(slot: number): boolean {
    const word = Math.floor(slot / WORD_BITS)
    return word < this.#taken.length && (this.#taken[word] & (1 << (slot % WORD_BITS))) !== 0
  }

  /** One more row has it. */
  share(slot: number): void {
    assert(slot > 0 && this.isUsed(slot), 'only what is used can be shared')
    this.#shared.set(slot, (this.#shared.get(slot) ?? 1) + 1)
    this.#sole.delete(slot)
  }

  /**
   * Its bytes stay as they are: several rows have it, or had since the last checkpoint. (Replay begins with what that one says, and would
   * change a page of all of them.)
   */
  isShared(slot: number): boolean {
    return this.#shared.has(slot)
  }

  /** One of several rows lets go of it. false: no other has it. */
  unshare(slot: number): boolean {
    const rows = this.#shared.get(slot)
    if (rows === undefined) return false
    if (rows === 1) {
      this.#shared.delete(slot)
      this.#sole.delete(slot)
      return false
    }
    this.#shared.set(slot, rows - 1)
    if (rows === 2) this.#sole.set(slot, this.#checkpoints)
    return true
  }

  /**
   * The slot can be used again, or its hole is punched, once a checkpoint that begins after this is finished. `pages`: how many of it
   * were written, at most.
   */
  free(slot: number, pages = CHUNK_PAGES): void {
    assert(slot > 0 && this.isUsed(slot), 'a slot is freed once')
    if (this.#freedTo === this.#freed.length) this.#makeRoom()
    this.#freed[this.#freedTo++] = slot * FREED_PAGES + pages
  }

  /** Of a slot that no checkpoint and no journal record names: free at once. */
  freeNow(slot: number): void {
    assert(slot > 0 && this.isUsed(slot), 'a slot is freed once')
    this.#punch(slot, 1)
    this.#clear(slot)
  }

  /** A checkpoint begins that will not name what was freed so far. */
  beginCheckpoint(): number {
    this.#checkpoints++
    return this.#freedBefore + this.#freedTo - this.#freedFrom
  }

  /**
   * The checkpoint that began with this token is durable: what was freed before it is punched, in turns, and becomes free.
   * A token whose checkpoint failed is simply forgotten; the next one covers its slots.
   * @returns when all of it is free. Never rejects
   */
  finishCheckpoint(token: number): Promise<void> {
    for (const [slot, begun] of this.#sole) {
      if (begun === this.#checkpoints) continue
      this.#sole.delete(slot)
      this.#shared.delete(slot)
    }
    const count = token - this.#freedBefore
    if (count > 0) {
      const due = this.#freed.slice(this.#freedFrom, this.#freedFrom + count).sort()
      this.#freedFrom += count
      this.#freedBefore += count
      this.#queue(due.filter(freed => !this.#keepWarm(slotOf(freed), freed % FREED_PAGES)).map(slotOf))
    }
    return this.#punchDue()
  }

  /** What free slots hold of the disk. */
  get warmBytes(): number {
    return this.#warmPages * PAGE_BYTES
  }

  /** The disk wants its space back: free slots that kept theirs are punched. Never rejects. */
  trim(): Promise<void> {
    const slots = Float64Array.from(this.#warm.keys()).sort()
    for (const slot of slots) this.#set(slot)
    this.#warm.clear()
    this.#warmPages = 0
    this.#queue(slots)
    return this.#punchDue()
  }

  #keepWarm(slot: number, pages: number): boolean {
    if (pages === 0 || this.#warmPages + pages > this.#warmPagesMax) return false
    this.#warm.set(slot, pages)
    this.#warmPages += pages
    this.#clear(slot)
    return true
  }

  #cool(slot: number) {
    const pages = this.#warm.get(slot)
    if (pages === undefined) return
    this.#warm.delete(slot)
    this.#warmPages -= pages
  }

  /** Bytes that are in memory, without blocking: how many were read, or -1. */
  readNow(slot: number, offsetInSlot: number, into: Uint8Array): number {
    return this.#file.readNow(into, place(slot, offsetInSlot, into.length))
  }

  read(slot: number, offsetInSlot: number, into: Uint8Array): Promise<void> {
    return this.#file.read(into, place(slot, offsetInSlot, into.length))
  }

  readSync(slot: number, offsetInSlot: number, into: Uint8Array): void {
    this.#file.readSync(into, place(slot, offsetInSlot, into.length))
  }

  /** NO_SPACE when the disk is full. */
  writeSync(slot: number, offsetInSlot: number, from: Uint8Array): void {
    this.#dirty = true
    this.#file.writeSync(from, place(slot, offsetInSlot, from.length))
  }

  /** A sync that begins before this resolves may not cover it. */
  async write(slot: number, offsetInSlot: number, from: Uint8Array): Promise<void> {
    this.#dirty = true
    try {
      await this.#file.write(from, place(slot, offsetInSlot, from.length))
    } finally {
      this.#dirty = true
    }
  }

  /** Gives back the space of whole pages; they read as zeros. */
  punch(slot: number, offsetInSlot: number, bytes: number): void {
    this.#dirty = true
    this.#file.punch(place(slot, offsetInSlot, bytes), bytes)
  }

  /** Everything written before is durable when it resolves; at once when nothing was written since the last one. */
  sync(): Promise<void> {
    if (this.#failure) return Promise.reject(this.#failure)
    if (!this.#dirty) return this.#group.running ?? DONE
    return this.#group.request()
  }

  /** The same, blocking. */
  syncSync(): void {
    if (this.#failure) throw this.#failure
    if (!this.#dirty && !this.#group.running) return
    this.#dirty = false
    try {
      this.#file.syncSync()
    } catch (error) {
      throw this.#fail(error)
    }
  }

  /** Not synced. Closing twice is fine. */
  close(): void {
    this.#closed = true
    this.#file.close()
  }

  async #syncNow() {
    if (this.#failure) throw this.#failure
    if (!this.#dirty) return
    this.#dirty = false
    try {
      await this.#file.sync()
    } catch (error) {
      throw this.#fail(error)
    }
  }

  /** After a failed sync nobody knows what the disk has, and the kernel forgets that it was dirty. */
  #fail(error: unknown): FerryError {
    this.#failure ??= toFerryError(error, "the cache's data file could not be synced")
    return this.#failure
  }

  #set(slot: number) {
    const word = Math.floor(slot / WORD_BITS)
    if (word >= this.#taken.length) {
      const grown = new Uint32Array(Math.max(word + 1, this.#taken.length * 2))
      grown.set(this.#taken)
      this.#taken = grown
    }
    this.#taken[word] |= 1 << (slot % WORD_BITS)
    this.#takenCount++
    if (slot > this.#slotsMax) this.#slotsMax = slot
  }

  #clear(slot: number) {
    const word = Math.floor(slot / WORD_BITS)
    this.#taken[word] &= ~(1 << (slot % WORD_BITS))
    this.#takenCount--
    if (word < this.#wordHint) this.#wordHint = word
  }

  #makeRoom() {
    const waiting = this.#freed.subarray(this.#freedFrom, this.#freedTo)
    const room = waiting.length * 2 > this.#freed.length ? new Float64Array(this.#freed.length * 2) : this.#freed
    room.set(waiting)
    this.#freed = room
    this.#freedTo = waiting.length
    this.#freedFrom = 0
  }

  /** Neighbours become one hole. `slots` is ascending. */
  #queue(slots: Float64Array) {
    for (let i = 0; i < slots.length; ) {
      let end = i + 1
      while (end < slots.length && slots[end] === slots[i] + end - i) end++
      this.#holes.push(slots[i], end - i)
      i = end
    }
  }

  #punchDue(): Promise<void> {
    if (this.#holes.length > 0) this.#punching ??= this.#punchAll()
    return this.#punching ?? DONE
  }

  async #punchAll() {
    await null // so that the caller has stored this promise before it can end
    for (let left = PUNCHED_PER_TURN; this.#holes.length > 0 && !this.#closed; ) {
      const all = this.#holes.pop()!
      const first = this.#holes.pop()!
      const count = Math.min(all, left)
      if (count < all) this.#holes.push(first + count, all - count)
      this.#punch(first, count)
      for (let slot = first; slot < first + count; slot++) this.#clear(slot)
      left -= count
      if (left > 0) continue
      await new Promise(setImmediate)
      left = PUNCHED_PER_TURN
    }
    this.#punching = undefined
  }

  #punch(first: number, count: number) {
    try {
      this.#file.punch(first * CHUNK_BYTES, count * CHUNK_BYTES)
    } catch {
      // No holes here, or not now: the space stays taken until the slot is used again.
    }
  }
}

function place(slot: number, offsetInSlot: number, bytes: number): number {
  assert(slot > 0 && offsetInSlot >= 0 && offsetInSlot + bytes <= CHUNK_BYTES, 'within a slot')
  return slot * CHUNK_BYTES + offsetInSlot
}

function encodeHeader() {
  const header = Buffer.alloc(HEADER_BYTES)
  header.write(MAGIC, 'latin1')
  header.writeUInt16LE(MAJOR, 8)
  header.writeUInt16LE(MINOR, 10)
  header.writeUInt32LE(0, 12) // features
  header.writeUInt32LE(CHUNK_BYTES, 16)
  return header
}

/** Whether the file was never written. */
function isNew(file: StorageFile): boolean {
  const header = Buffer.alloc(HEADER_BYTES)
  file.readSync(header, 0)
  if (header.every(byte => byte === 0)) return true
  if (header.toString('latin1', 0, MAGIC.length) !== MAGIC)
    throw new FerryError('BAD_FORMAT', { detail: `${NAME} in the cache directory is not a data file of pageferry` })
  const [major, minor, features] = [header.readUInt16LE(8), header.readUInt16LE(10), header.readUInt32LE(12)]
  if (major > MAJOR || features !== 0)
    throw new FerryError('TOO_NEW', {
      detail: `the cache's data file has format ${major}.${minor}, features ${features}`,
    })
  if (header.readUInt32LE(16) !== CHUNK_BYTES)
    throw new FerryError('BAD_FORMAT', {
      detail: `the cache's data file has chunks of ${header.readUInt32LE(16)} bytes`,
    })
  return false
}
