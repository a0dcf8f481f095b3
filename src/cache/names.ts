// Inodes and their names: each operation is checked, written to the journal, and then done; replay does the last part again.
import { FerryError } from '../base/errors.js'
import { ACCESS_ACL } from '../remote/tree.js'
import { nowNs } from './content.js'
import type { AttributeChange, Ino, NewInode, Whiteout } from './filesystem.js'
import { Changed, Inode, S_IFMT } from './inode.js'
import {
  type AttributesRecord,
  Kind,
  type KnownRecord,
  type LinkRecord,
  type MakeRecord,
  type RenameRecord,
  type UnlinkRecord,
  type XattrRecord,
} from './records.js'
import type { TreeState } from './state.js'

const S_IFCHR = 0o020000
const LINKS_MAX = 65_000
const DIRECTORY_BYTES = 4096

interface Made {
  /** Of the kernel. */
  request?: number
  /** Which it has from its beginning. */
  xattrs?: Map<string, Uint8Array>
}

interface XattrSet {
  request?: number
  /** Permission bits, which change with it. */
  mode?: number
}

/** Operations on names that are known: whoever calls has listed what must be listed. */
export class Names {
  constructor(readonly state: TreeState) {}

  make(parent: Ino, name: string, node: NewInode, made?: Made): Inode {
    this.state.ensureKnown(this.#into(parent, name))
    return this.#make(parent, name, node, made)
  }

  /** A file that has no name yet, and lives for as long as somebody has it open, or until it gets one. */
  makeNameless(node: NewInode, made?: Made): Inode {
    return this.#make(0, '', node, made)
  }

  #make(
    parent: Ino,
    name: string,
    { mode, uid, gid, rdev = 0, link = '' }: NewInode,
    { request = 0, xattrs }: Made = {},
  ): Inode {
    const { state } = this
    const asked = state.outcomes.asked(request) ?? null
    const record: MakeRecord = [state.newIno(), parent, name, mode, uid, gid, rdev, link, nowNs(state), asked]
    if (xattrs?.size) record.push([...xattrs])
    state.append(Kind.make, record)
    return this.replayMake(record)
  }

  /** `parent` 0: it has no name. */
  replayMake([ino, parent, name, mode, uid, gid, rdev, link, timeNs, asked, xattrs]: MakeRecord): Inode {
    const { state } = this
    state.outcomes.note(asked, ino)
    const directory = parent === 0 ? null : state.directory(parent)
    const inode = new Inode(ino)
    state.nextIno = Math.max(state.nextIno, ino + 1)
    inode.mode = mode
    inode.uid = uid
    inode.gid = gid
    inode.rdev = rdev
    inode.link = link
    if (xattrs) inode.xattrs = new Map(xattrs)
    inode.size = link.length
    inode.atimeNs = inode.mtimeNs = inode.ctimeNs = inode.btimeNs = timeNs
    inode.durable = true
    inode.parent = parent
    inode.name = name
    if (inode.isDirectory) {
      inode.size = DIRECTORY_BYTES
      inode.nlink = 2
      inode.listed = true
      inode.children = new Map()
    }
    state.inodes.set(ino, inode)
    if (!directory) {
      inode.nlink = 0
      state.persist(inode)
      return inode
    }
    if (inode.isDirectory) directory.nlink++
    state.markName(parent, name, 0)
    state.setDentry(directory, name, inode)
    state.mark(inode, Changed.new | Changed.names | Changed.data | Changed.attributes | Changed.xattrs)
    this.#touched(directory, timeNs)
    return inode
  }

  link(ino: Ino, parent: Ino, name: string, request = 0): Inode {
    const { state } = this
    const inode = state.inode(ino)
    if (inode.isDirectory) throw new FerryError('NOT_PERMITTED', { detail: 'a directory cannot have another name' })
    if (inode.nlink >= LINKS_MAX) throw new FerryError('TOO_MANY_LINKS')
    const isNameless = inode.nlink === 0 && inode.isFile && inode.remoteParent === 0
    if (inode.parent === 0 && !isNameless) throw new FerryError('NOT_FOUND')
    const directory = this.#into(parent, name)
    state.ensureKnown(directory)
    state.ensureKnown(inode)
    const record: LinkRecord = [ino, parent, name, nowNs(state), state.outcomes.asked(request)]
    state.append(Kind.link, record)
    this.replayLink(record)
    return inode
  }

  replayLink([ino, parent, name, timeNs, asked]: LinkRecord): void {
    const { state } = this
    state.outcomes.note(asked, ino)
    const directory = state.directory(parent)
    const inode = state.inode(ino)
    state.markName(parent, name, 0)
    state.setDentry(directory, name, inode)
    inode.nlink++
    inode.ctimeNs = timeNs
    if (inode.parent === 0) {
      inode.parent = parent
      inode.name = name
      this.#sendWhole(inode)
    } else state.mark(inode, Changed.names)
    this.#touched(directory, timeNs)
  }

  /** The remote has none of it: batches that it was in without a name have left it out. */
  #sendWhole(inode: Inode) {
    const { state } = this
    const { chunks } = state
    for (const row of chunks.rowsOf(inode.ino)) if (chunks.valid[row]) state.dirty(row, chunks.valid[row])
    state.mark(inode, Changed.new | Changed.names | Changed.data | Changed.attributes | Changed.xattrs)
  }

  /** A name, and with the last one the inode, unless it is still in use. The caller has checked type and emptiness. */
  remove(parent: Ino, name: string, request = 0): void {
    const { state } = this
    const directory = state.directory(parent)
    const inode = this.#named(directory, name)
    state.ensureKnown(directory)
    state.ensureNamed(inode, parent, name)
    const record: UnlinkRecord = [parent, name, nowNs(state), state.outcomes.asked(request)]
    state.append(Kind.unlink, record)
    this.replayRemove(record)
  }

  replayRemove([parent, name, timeNs, asked]: UnlinkRecord): void {
    const { state } = this
    state.outcomes.note(asked)
    const directory = state.directory(parent)
    const inode = this.#named(directory, name)
    this.#dropName(directory, name, inode, timeNs)
    this.#touched(directory, timeNs)
    state.reap(inode)
  }

  #dropName(directory: Inode, name: string, inode: Inode, timeNs: bigint) {
    const { state } = this
    state.markName(directory.ino, name, inode.ino)
    state.dropDentry(directory, name)
    inode.nlink -= inode.isDirectory ? 2 : 1
    inode.nlink = Math.max(0, inode.nlink)
    if (inode.isDirectory) directory.nlink--
    inode.ctimeNs = timeNs
    if (inode.parent === directory.ino && inode.name === name) state.findName(inode)
    state.mark(inode, Changed.names)
  }

  rename(
    source: { parent: Ino; name: string },
    target: { parent: Ino; name: string },
    { exchange, whiteout, request = 0 }: { exchange: boolean; whiteout?: Whiteout; request?: number },
  ): void {
    const { state } = this
    const from = state.directory(source.parent)
    const to = state.directory(target.parent)
    const inode = this.#named(from, source.name)
    const other = state.child(to, target.name)
    if (other === inode) return
    checkName(target.name)
    if (inode.isDirectory && this.#below(to, inode))
      throw new FerryError('INVALID', { detail: 'a directory cannot move into itself' })
    if (exchange && !other) throw new FerryError('NOT_FOUND')
    if (exchange && other?.isDirectory && this.#below(from, other)) throw new FerryError('INVALID')
    state.ensureKnown(from)
    state.ensureKnown(to)
    state.ensureNamed(inode, source.parent, source.name)
    if (other) state.ensureNamed(other, target.parent, target.name)
    const record: RenameRecord = [
      source.parent,
      source.name,
      target.parent,
      target.name,
      exchange,
      nowNs(state),
      whiteout ? [state.newIno(), whiteout.uid, whiteout.gid] : null,
      state.outcomes.asked(request),
    ]
    state.append(Kind.rename, record)
    this.replayRename(record)
  }

  replayRename([parent, name, newParent, newName, exchange, timeNs, whiteout, asked]: RenameRecord): void {
    const { state } = this
    state.outcomes.note(asked)
    const from = state.directory(parent)
    const to = state.directory(newParent)
    const inode = this.#named(from, name)
    const other = state.child(to, newName)
    state.markName(parent, name, inode.ino)
    state.markName(newParent, newName, other?.ino ?? 0)
    if (other && !exchange) this.#dropName(to, newName, other, timeNs)
    if (exchange && other) {
      this.#place(from, name, other, timeNs, { from: to, name: newName })
    } else state.dropDentry(from, name)
    this.#place(to, newName, inode, timeNs, { from, name })
    this.#touched(from, timeNs)
    if (to !== from) this.#touched(to, timeNs)
    if (other && !exchange) state.reap(other)
    if (whiteout) {
      const [ino, uid, gid] = whiteout
      this.replayMake([ino, parent, name, S_IFCHR, uid, gid, 0, '', timeNs])
    }
  }

  #place(directory: Inode, name: string, inode: Inode, timeNs: bigint, old: { from: Inode; name: string }) {
    const { state } = this
    state.setDentry(directory, name, inode)
    if ((inode.parent === old.from.ino && inode.name === old.name) || inode.parent === 0) {
      inode.parent = directory.ino
      inode.name = name
    }
    if (inode.isDirectory && directory !== old.from) {
      old.from.nlink--
      directory.nlink++
    }
    inode.ctimeNs = timeNs
    state.mark(inode, Changed.names)
  }

  #below(directory: Inode, ancestor: Inode): boolean {
    for (let at = directory; ; at = this.state.inode(at.parent)) {
      if (at === ancestor) return true
      if (at.parent === at.ino || at.parent === 0) return false
    }
  }

  /** `acl`: the access control list by the new mode. */
  setAttributes(ino: Ino, change: AttributeChange, acl?: Uint8Array): void {
    const { state } = this
    const inode = state.inode(ino)
    state.ensureKnown(inode)
    const record: AttributesRecord = [
      ino,
      change.mode ?? null,
      change.uid ?? null,
      change.gid ?? null,
      change.atimeNs ?? null,
      change.mtimeNs ?? null,
      change.ctimeNs ?? nowNs(state),
    ]
    if (acl) {
      record.push(acl)
      this.#knowOtherXattrs(inode)
    }
    state.append(Kind.attributes, record)
    this.replayAttributes(record)
  }

  replayAttributes([ino, mode, uid, gid, atimeNs, mtimeNs, ctimeNs, acl]: AttributesRecord): void {
    const inode = this.state.inode(ino)
    if (mode !== null) inode.mode = (inode.mode & S_IFMT) | (mode & 0o7777)
    if (uid !== null) inode.uid = uid
    if (gid !== null) inode.gid = gid
    if (atimeNs !== null) inode.atimeNs = atimeNs
    if (mtimeNs !== null) inode.mtimeNs = mtimeNs
    inode.ctimeNs = ctimeNs
    if (acl) inode.xattrs?.set(ACCESS_ACL, acl)
    const flags = Changed.attributes | (mtimeNs === null ? 0 : Changed.times) | (acl ? Changed.xattrs : 0)
    this.state.mark(inode, flags)
  }

  /** The inode's attributes are loaded. null removes. */
  setXattr(inode: Inode, name: string, value: Uint8Array | null, { request = 0, mode }: XattrSet = {}): void {
    const { state } = this
    state.ensureKnown(inode)
    const asked = state.outcomes.asked(request) ?? null
    const record: XattrRecord = [inode.ino, name, value && new Uint8Array(value), nowNs(state), asked]
    if (mode !== undefined) record.push(mode)
    this.#knowOtherXattrs(inode)
    state.append(Kind.xattr, record)
    this.replayXattr(record)
  }

  /** A record names one extended attribute: the others must be known to the journal as well. */
  #knowOtherXattrs(inode: Inode) {
    if (inode.xattrs === null || inode.changed & Changed.xattrs) return
    inode.durable = false
    this.state.ensureKnown(inode)
  }

  replayXattr([ino, name, value, timeNs, asked, mode]: XattrRecord): void {
    this.state.outcomes.note(asked)
    const inode = this.state.inode(ino)
    inode.xattrs ??= new Map()
    if (value) inode.xattrs.set(name, value)
    else inode.xattrs.delete(name)
    if (mode !== undefined) inode.mode = (inode.mode & S_IFMT) | mode
    inode.ctimeNs = timeNs
    this.state.mark(inode, Changed.xattrs | Changed.attributes)
  }

  replayKnown([record, dentry]: KnownRecord): void {
    const { state } = this
    const ino = record[0]
    const known = state.inodes.get(ino) ?? (state.database.inode(ino) ? state.inode(ino) : null)
    const inode = known ?? new Inode(ino)
    state.nextIno = Math.max(state.nextIno, ino + 1)
    const { version } = inode
    inode.takeRecord(record)
    inode.durable = true
    state.inodes.set(ino, inode)
    // Another file had come in its place, which no record tells: what was here of the old one is not of this one.
    if (known && version !== inode.version) state.dropClean(inode)
    // Its other names are not in the journal: the next listing finds them to be the same file.
    if (inode.id !== null) state.byId.set(inode.id, ino)
    state.persist(inode)
    if (!dentry) return
    const [parent, name, , cookie] = dentry
    const directory = state.directory(parent)
    state.setDentry(directory, name, inode, cookie)
    directory.nextCookie = Math.max(directory.nextCookie, cookie + 1)
  }

  #touched(directory: Inode, timeNs: bigint) {
    directory.mtimeNs = directory.ctimeNs = timeNs
    this.state.mark(directory, Changed.attributes)
  }

  #into(parent: Ino, name: string): Inode {
    checkName(name)
    const directory = this.state.directory(parent)
    if (directory.parent === 0) throw new FerryError('NOT_FOUND')
    if (this.state.children(directory).has(name)) throw new FerryError('EXISTS', { detail: name })
    return directory
  }

  #named(directory: Inode, name: string): Inode {
    const inode = this.state.child(directory, name)
    if (!inode) throw new FerryError('NOT_FOUND', { detail: name })
    return inode
  }
}

export const NAME_BYTES_MAX = 255

export function checkName(name: string): void {
  if (name.length > NAME_BYTES_MAX)
    throw new FerryError('NAME_TOO_LONG', { detail: `${name.length} bytes; at most ${NAME_BYTES_MAX}` })
  if (name === '' || name === '.' || name === '..' || name.includes('/') || name.includes('\0'))
    throw new FerryError('INVALID', { detail: JSON.stringify(name) })
}
