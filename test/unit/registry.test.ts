// Who is mounted, and where unsent work lies.
import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { bootId } from '../../src/linux/process.js'
import { hasWork, privateDirectory, Registry, registryPaths } from '../../src/registry.js'
import { requires } from '../fixtures/requires.js'

let folder: string
let registry: Registry
const runDir = () => join(folder, 'run')
const stateDir = () => join(folder, 'state')
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'registry-'))
  registry = new Registry({ runDir: runDir(), stateDir: stateDir() })
})
afterEach(() => rmSync(folder, { recursive: true }))

const me = () => ({
  mountpoint: '/mnt',
  remote: 'file:///x',
  cacheDirs: [folder],
  readOnly: false,
  socket: registry.socketPath(),
})
const lag = { bytes: 5, operations: 1, ageMs: 3, kernelBytes: 0 }
const none = { bytes: 0, operations: 0, ageMs: 0, kernelBytes: 0 }

describe('daemons', () => {
  test('join and leave', () => {
    expect(registry.daemons()).toEqual([])
    registry.join(me())
    expect(registry.daemons()).toMatchObject([{ ...me(), pid: process.pid }])
    registry.leave()
    expect(registry.daemons()).toEqual([])
  })

  test('those that are gone are dropped, with their sockets', () => {
    registry.join(me())
    const dead = spawnSync(process.execPath, ['-e', '']).pid
    const socket = join(runDir(), 'dead.sock')
    writeFileSync(socket, '')
    const entry = { ...me(), socket, pid: dead, startTime: 1, bootId: bootId() }
    const files = ['dead.json', 'reused.json', 'rebooted.json'].map(name => join(runDir(), name))
    writeFileSync(files[0], JSON.stringify(entry))
    // This pid, but the process began at another time, or before the last boot.
    writeFileSync(files[1], JSON.stringify({ ...entry, pid: process.pid }))
    writeFileSync(files[2], JSON.stringify({ ...registry.daemons()[0], bootId: 'another' }))
    expect(registry.daemons().map(({ pid }) => pid)).toEqual([process.pid])
    for (const file of [...files, socket]) expect(existsSync(file)).toBe(false)
  })

  test('a file that is damaged counts as none', () => {
    registry.join(me())
    for (const text of ['', '{', '[]', '{"pid":"x"}', 'null'])
      writeFileSync(join(runDir(), `${text.length}x.json`), text)
    expect(registry.daemons()).toHaveLength(1)
  })

  test('nobody else can look in', () => {
    registry.join(me())
    expect(statSync(runDir()).mode & 0o777).toBe(0o700)
    for (const name of readdirSync(runDir())) expect(statSync(join(runDir(), name)).mode & 0o077).toBe(0)
  })
})

describe('journals', () => {
  const cache = (name: string) => {
    const path = join(folder, name)
    mkdirSync(path)
    return path
  }

  test('are listed when something is left, or when nobody could say', () => {
    registry.keepJournal({ remote: 'a', cacheDir: cache('left'), lag, closed: true })
    registry.keepJournal({ remote: 'b', cacheDir: cache('empty'), lag: none, closed: true })
    registry.keepJournal({ remote: 'c', cacheDir: cache('killed'), lag: none, closed: false })
    expect(
      registry
        .journals()
        .map(({ remote }) => remote)
        .sort(),
    ).toEqual(['a', 'c'])
  })

  test('are dropped when sent, or when their directory is gone', () => {
    registry.keepJournal({ remote: 'a', cacheDir: cache('a'), lag, closed: true })
    registry.keepJournal({ remote: 'b', cacheDir: cache('b'), lag, closed: true })
    registry.dropJournal(join(folder, 'a'))
    rmSync(join(folder, 'b'), { recursive: true })
    expect(registry.journals()).toEqual([])
    expect(readdirSync(join(stateDir(), 'journals'))).toEqual([])
  })

  test("those that a daemon works on are the daemon's to tell", () => {
    registry.keepJournal({ remote: 'a', cacheDir: cache('a'), lag, closed: false })
    registry.join({ ...me(), cacheDirs: [join(folder, 'a')] })
    expect(registry.journals()).toEqual([])
    registry.leave()
    expect(registry.journals()).toHaveLength(1)
  })
})

test('work is bytes, operations, or what the kernel holds', () => {
  expect(hasWork(none)).toBe(false)
  for (const key of ['bytes', 'operations', 'kernelBytes']) expect(hasWork({ ...none, [key]: 1 })).toBe(true)
})

describe('places', () => {
  test('are those of the environment', () => {
    expect(registryPaths({ XDG_RUNTIME_DIR: '/r', XDG_STATE_HOME: '/s' })).toEqual({
      runDir: '/r/pageferry',
      stateDir: '/s/pageferry',
    })
  })

  test('are ours alone', () => {
    expect(privateDirectory(join(folder, 'a', 'b'))).toBe(join(folder, 'a', 'b'))
    const open = join(folder, 'open')
    mkdirSync(open)
    chmodSync(open, 0o777)
    expect(() => privateDirectory(open)).toThrow(/must belong to this user/)
    writeFileSync(join(folder, 'file'), '')
    expect(() => privateDirectory(join(folder, 'file', 'x'))).toThrow()
  })

  const { test: asRoot } = requires('root')
  asRoot('are not those of somebody else', async () => {
    const theirs = join(folder, 'theirs')
    mkdirSync(theirs, { mode: 0o700 })
    const { chownSync } = await import('node:fs')
    chownSync(theirs, 65534, 65534)
    symlinkSync(theirs, join(folder, 'link'))
    expect(() => privateDirectory(theirs)).toThrow(/must belong to this user/)
    expect(() => privateDirectory(join(folder, 'link'))).toThrow(/must belong to this user/)
  })
})
