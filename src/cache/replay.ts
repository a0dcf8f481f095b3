// The journal's records, done again on the state of the last checkpoint.
import type { Content } from './content.js'
import type { Names } from './names.js'
import { settle } from './push.js'
import { type CutRecord, Kind, unpackRecord } from './records.js'
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
    case Kind.share:
      return content.replayWrite(body, true)
    case Kind.known:
      names.replayKnown(unpackRecord(body))
      return true
    case Kind.make:
      names.replayMake(unpackRecord(body))
      return true
    case Kind.link:
      names.replayLink(unpackRecord(body))
      return true
    case Kind.unlink:
      names.replayRemove(unpackRecord(body))
      return true
    case Kind.rename:
      names.replayRename(unpackRecord(body))
      return true
    case Kind.attributes:
      names.replayAttributes(unpackRecord(body))
      return true
    case Kind.truncate:
      content.replayTruncate(unpackRecord(body))
      return true
    case Kind.zero:
      content.replayZero(unpackRecord(body))
      return true
    case Kind.reserve:
      content.replayReserve(unpackRecord(body))
      return true
    case Kind.xattr:
      names.replayXattr(unpackRecord(body))
      return true
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
