import { describe, expect, test } from '@jest/globals'
import { random } from '../../src/base/random.js'
import { checkKey, directoryKey, keyOf, nameOf, prefixOf } from '../../src/remote/object-keys.js'

const bytes = (text: string) => Buffer.from(text).toString('latin1')

describe('the key of a path', () => {
  test('is the path', () => {
    for (const path of ['a', 'a/b c/d.txt', bytes('Grüße/日本/🎬.mp4'), 'a\n\x01'])
      expect([keyOf(path), directoryKey(path)]).toEqual([path, `${path}/`])
    expect(prefixOf('')).toBe('')
    expect(directoryKey('')).toBe('.pageferry/root')
  })

  test('has characters for bytes that are none', () => {
    expect(keyOf('a\xff/b')).toBe(bytes('a\uefff/b'))
    // Cut short, overlong, a surrogate, beyond the last character.
    for (const name of ['\xc3', '\xe6\x97', '\xc0\xaf', '\xed\xa0\x80', '\xf4\x90\x80\x80'])
      expect(Buffer.from(Buffer.from(keyOf(name), 'latin1').toString()).toString('latin1')).toBe(keyOf(name))
  })

  test('leads back to the name, whatever its bytes, and to no other', () => {
    const dice = random(7)
    const pieces = ['a', '\x80', '\xbf', '\xc3', '\xa4', '\xee', '\xbe', '\xef', '\xff', bytes('\uef80'), bytes('ü🎬')]
    const keys = new Map<string, string>()
    for (let round = 0; round < 5_000; round++) {
      const name = Array.from({ length: 1 + dice.below(6) }, () => dice.pick(pieces)).join('')
      const key = keyOf(name)
      expect(Buffer.from(key, 'latin1').toString()).not.toContain('\ufffd')
      expect(nameOf(key)).toBe(name)
      expect(keys.get(key) ?? name).toBe(name)
      keys.set(key, name)
    }
  })

  test('is refused when it is too long', () => {
    const refused = { code: 'NAME_TOO_LONG' }
    expect(() => checkKey('a'.repeat(256), 1024)).toThrow(expect.objectContaining(refused))
    expect(() => checkKey('\xff'.repeat(100), 256)).toThrow(expect.objectContaining(refused))
    expect(() => checkKey('\xff'.repeat(100), 1024)).not.toThrow()
    expect(() => checkKey(`${'a'.repeat(255)}/`.repeat(4).slice(0, -1), 1024)).not.toThrow()
  })
})

describe('the name in a key', () => {
  test('is none where it cannot be one', () => {
    for (const part of ['', '.', '..', 'a\0b', 'a'.repeat(256)]) expect(nameOf(part)).toBeNull()
    // What would be written in another way: a slash cannot be, nor what is UTF-8 without.
    expect(nameOf(bytes('\uefc3\uefa4'))).toBeNull()
    expect(nameOf(bytes('\uefc3'))).toBe('\xc3')
  })
})
