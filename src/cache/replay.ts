// The journal's records, done again on the state of the last checkpoint.
import type { Content } from './content.js'
import type { Names } from './names.js'
import { settle } from './push.js'
import {
  type CutRecord,
  Kind,
  type LinkRecord,
  type MakeRecord,
  type RenameRecord,
  type UnlinkRecord,
  unpackRecord,
  type XattrRecord,
} from './records.js'
import type { TreeState } from './state.js'

/** false: the record's data is not what it says, and replay ends before it. */
export function replayRecord(
  state: TreeState,
  names: Names,
  content: Content,
  kind: number,
  body: Uint8Array,
): boolean {
  switch (kind) {
    case Kind.write:
    case Kind.part:
      return content.replayWrite(body)
    case Kind.known:
      names.replayKnown(unpackRecord(body))
      return true
    case Kind.make: {
      const record = unpackRecord<MakeRecord>(body)
      const { ino } = names.replayMake(record)
      state.answered(record[9], ino)
      return true
    }
    case Kind.link: {
      const record = unpackRecord<LinkRecord>(body)
      names.replayLink(record)
      state.answered(record[4], record[0])
      return true
    }
    case Kind.unlink: {
      const record = unpackRecord<UnlinkRecord>(body)
      names.replayRemove(record)
      state.answered(record[3])
      return true
    }
    case Kind.rename: {
      const record = unpackRecord<RenameRecord>(body)
      names.replayRename(record)
      state.answered(record[7])
      return true
    }
    case Kind.attributes:
      names.replayAttributes(unpackRecord(body))
      return true
    case Kind.truncate:
      content.replayTruncate(unpackRecord(body))
      return true
    case Kind.zero:
      content.replayZero(unpackRecord(body))
      return true
    case Kind.xattr: {
      const record = unpackRecord<XattrRecord>(body)
      names.replayXattr(record)
      state.answered(record[4])
      return true
    }
    case Kind.cut: {
      const [batch, held] = unpackRecord<CutRecord>(body)
      state.cut(batch, new Set(held))
      return true
    }
    case Kind.committed:
      settle(state, unpackRecord(body))
      return true
    case Kind.merged:
      state.merged()
      return true
    case Kind.allowed:
      state.quarantine.clear()
      return true
    default:
      return false
  }
}
