// Makes the kernel write its dirty pages, from outside. A notification would do the same from a thread of ours; but that thread could not be
// killed while it waits for WRITEs that only we can answer. `kill -9` would then leave a process that never ends, with /dev/fuse open,
// and everybody who uses the mount waiting for ever. Another process is waited for by nobody: when we die, the connection ends, and so does its call.
import { type ChildProcess, spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { type Deferred, deferred } from '../base/async.js'
import { type Code, FerryError, isFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import type { Ino } from '../cache/filesystem.js'

const log = logger('fs')

/** It takes 50 MB, and 0.1 s to start: kept for the next one, but not for long. */
const IDLE_MS = 60_000

export type FlushVerb = 'fsync' | 'write' | 'open' | 'all'

/** The inode is not in the kernel's cache (any more): nothing to write. */
const harmless: Code[] = ['STALE', 'NOT_FOUND']
/** It may not open files by number, or not this one: there is another way. */
const refusals: Code[] = ['NOT_PERMITTED', 'FORBIDDEN', 'UNSUPPORTED', 'CLOSED']

export class Flusher {
  readonly #mountpoint: string
  readonly #device: number
  #child: ChildProcess | undefined
  readonly #waiting = new Map<number, Deferred<Code | 'ok'>>()
  #nextId = 1
  #idle: NodeJS.Timeout | undefined
  #closed = false
  #refused = false

  /** `device` is the st_dev of the mount: if something else is mounted there meanwhile, it is left alone. */
  constructor(mountpoint: string, device: number) {
    this.#mountpoint = mountpoint
    this.#device = device
  }

  /** The process whose FSYNC means no more than that the pages be written; undefined if there is none. */
  get pid(): number | undefined {
    return this.#child?.pid
  }

  /** @returns false if this cannot be done here: without CAP_DAC_READ_SEARCH, or when the mount is out of sight */
  async run(verb: FlushVerb, ino: Ino): Promise<boolean> {
    if (this.#closed || this.#refused) return false
    const answer = await this.#ask(verb, ino)
    if (answer === 'ok' || harmless.includes(answer)) return true
    this.#refused ||= answer === 'NOT_PERMITTED'
    if (refusals.includes(answer)) return false
    throw new FerryError(answer, { detail: `${verb} of inode ${ino}` })
  }

  close() {
    this.#closed = true
    this.#end()
  }

  async #ask(verb: FlushVerb, ino: Ino): Promise<Code | 'ok'> {
    clearTimeout(this.#idle)
    const child = (this.#child ??= this.#start())
    const id = this.#nextId++
    const answer = deferred<Code | 'ok'>()
    this.#waiting.set(id, answer)
    child.stdin!.write(`${id} ${verb} ${ino}\n`)
    try {
      return await answer.promise
    } catch (error) {
      if (!isFerryError(error)) throw error
      return error.code
    } finally {
      if (this.#waiting.size === 0) this.#idle = setTimeout(() => this.#end(), IDLE_MS).unref()
    }
  }

  #end() {
    clearTimeout(this.#idle)
    this.#child?.stdin?.end()
    this.#child = undefined
  }

  #start(): ChildProcess {
    const script = fileURLToPath(new URL('./flusher-main.js', import.meta.url))
    const child = spawn(process.execPath, [script, this.#mountpoint, `${this.#device}`], {
      stdio: ['pipe', 'pipe', 'inherit'],
      cwd: '/',
      detached: true, // what a terminal sends to all its processes is for us to decide about
      env: { ...process.env, NODE_OPTIONS: '' },
    })
    let rest = ''
    child.stdout!.setEncoding('latin1').on('data', (text: string) => {
      const lines = (rest + text).split('\n')
      rest = lines.pop()!
      for (const line of lines) {
        const [id, answer] = line.split(' ')
        this.#waiting.get(Number(id))?.resolve(answer as Code | 'ok')
        this.#waiting.delete(Number(id))
      }
    })
    child.stdin!.on('error', () => {}) // it ended: said below
    const ended = (error?: Error) => {
      if (this.#child === child) this.#child = undefined
      else return
      if (error) log.warn('no process to flush the mount with', { error })
      for (const { reject } of this.#waiting.values()) reject(new FerryError('CLOSED', { detail: 'the flusher ended' }))
      this.#waiting.clear()
    }
    child.on('error', ended).on('exit', () => ended())
    child.unref()
    ;(child.stdout as unknown as { unref(): void }).unref()
    ;(child.stdin as unknown as { unref(): void }).unref()
    return child
  }
}
