import { describe, expect, test } from '@jest/globals'
import {
  attributesOf,
  checkMetadata,
  isLink,
  metadataWith,
  tagOf,
  xattrsOf,
} from '../../src/remote/object-attributes.js'

const owner = { uid: 7, gid: 8 }
const read = (metadata: Record<string, string>, key = 'a') => attributesOf({ key, metadata, modifiedMs: 5_000 }, owner)

describe('attributes of an object', () => {
  test('without metadata are those of a plain file, or directory', () => {
    const common = { ...owner, atimeNs: 5_000_000_000n, mtimeNs: 5_000_000_000n }
    expect(read({})).toEqual({ mode: 0o100644, ...common })
    expect(read({}, 'd/')).toEqual({ mode: 0o40755, ...common })
  })

  test('as s3fs writes them', () => {
    const metadata = { mode: '33261', uid: '1000', gid: '100', mtime: '1700000000.123456789', atime: '1700000001' }
    expect(read(metadata)).toEqual({
      ...{ mode: 0o100755, uid: 1000, gid: 100 },
      ...{ mtimeNs: 1_700_000_000_123_456_789n, atimeNs: 1_700_000_001_000_000_000n },
    })
    expect(read({ mode: '16877' }, 'd/').mode).toBe(0o40755)
    expect(isLink({ key: 'l', metadata: { mode: '41471' } })).toBe(true)
  })

  test('as rclone writes them', () => {
    const metadata = { mode: '100755', mtime: '1700000000.1', atime: '2023-11-14T22:13:20.5+00:00' }
    expect(read(metadata)).toMatchObject({ mode: 0o100755, mtimeNs: 1_700_000_000_100_000_000n })
    expect(read(metadata).atimeNs).toBe(1_700_000_000_500_000_000n)
    expect(read({ mode: '0100600' }).mode).toBe(0o100600)
    expect(read({ mode: '40700' }, 'd/').mode).toBe(0o40700)
    // A directory whose mode would be a symlink's in decimal.
    expect(read({ mode: '41471' }, 'd/').mode).toBe(0o41471)
  })

  test('that mean nothing are as if they were not there', () => {
    for (const mode of ['', 'x', '99999', '0', '-1', '16877', '777777777'])
      expect([mode, read({ mode }).mode & 0o170000]).toEqual([mode, 0o100000])
    expect(read({ uid: '-1', gid: '5000000000', mtime: 'yesterday' })).toMatchObject({
      ...owner,
      mtimeNs: 5_000_000_000n,
    })
  })

  test('come back as they were written', () => {
    const attributes = { mode: 0o104755, uid: 0, gid: 4_294_967_295, atimeNs: 0n, mtimeNs: -1_500_000_001n }
    const xattrs = new Map([
      ['user.\xff "ü', Buffer.from([0, 255])],
      ['trusted.x', Buffer.from('')],
    ])
    const tag = { epoch: 3, batch: 12, index: 0, expected: true }
    const metadata = metadataWith({ other: 'kept', md5chksum: 'x' }, { attributes, xattrs, tag, changed: true })
    expect(read(metadata)).toEqual(attributes)
    expect([...xattrsOf(metadata)].map(([name, value]) => [name, [...value]])).toEqual([
      ['user.\xff "ü', [0, 255]],
      ['trusted.x', []],
    ])
    expect(tagOf(metadata)).toEqual(tag)
    expect(metadata).toMatchObject({ other: 'kept', mode: String(0o104755), mtime: '-1.500000001' })
    expect(metadata.md5chksum).toBeUndefined()
    expect(Object.values(metadata).join('')).toMatch(/^[\x20-\x7e]*$/)
    expect(metadataWith(metadata, { xattrs: new Map() }).xattr).toBeUndefined()
    expect(metadataWith(metadata, {})).toEqual(metadata)
  })

  test('xattrs as s3fs writes them; what is none is ignored', () => {
    expect(xattrsOf({ xattr: '%7B%22user.test%22%3A%22dmFsdWU%3D%22%2C%22system.x%22%3A%22%22%7D' })).toEqual(
      new Map([['user.test', new Uint8Array(Buffer.from('value'))]]),
    )
    for (const xattr of ['%', '{', '[]', 'null', '{"user.x":1}']) expect(xattrsOf({ xattr })).toEqual(new Map())
  })

  test('are refused beyond what metadata can hold', () => {
    expect(() => checkMetadata({ a: 'b'.repeat(10) }, 10)).toThrow(expect.objectContaining({ code: 'TOO_LARGE' }))
  })
})
