// Objects that may have one of several states, since nobody knows whether a call that failed was done.
import type { Code } from '../../src/base/errors.js'
import type { Random } from '../../src/base/random.js'
import type { ListPage, ObjectHead, Objects } from '../../src/remote/objects.js'
import { temporaryCodes } from '../../src/remote/retry.js'

const KEYS = ['a', 'b/c', 'b/d', '\xc3\xa9 +']
const BYTES_MAX = 3000

/** Content (latin1), or null: there is none. */
type State = string | null
const isThere = (state: State): state is string => state !== null

export interface MixOptions {
  objects: Objects
  random: Random
  /** Of all keys. */
  prefix: string
  calls: number
  /** Whatever is read can be checked by its tag: no ranges, nothing in parts. */
  digests: boolean
  /** Nothing of a call is still on its way. */
  settled(): Promise<void>
}

/** Calls by chance, one after the other. Throws when an answer was impossible. @returns what may be there at the end */
export async function mix({ objects, random, prefix, calls, digests, settled }: MixOptions): Promise<ObjectsModel> {
  const model = new ObjectsModel(objects, random, prefix)
  const work = [
    ...['put', 'put', 'putIf', 'get', 'get', 'head', 'list', 'copy', 'remove', 'removeAll'],
    ...(digests ? [] : ['range', 'upload']),
  ] as ('put' | 'putIf' | 'get' | 'head' | 'list' | 'copy' | 'remove' | 'removeAll' | 'range' | 'upload')[]
  for (let i = 0; i < calls; i++) {
    const what = random.pick(work)
    try {
      await model[what]()
    } catch (error) {
      throw new Error(`call ${i}, ${what}: ${(error as Error).message}`, { cause: error })
    }
    await settled()
  }
  return model
}

export class ObjectsModel {
  readonly #may = new Map<string, Set<State>>(KEYS.map(key => [key, new Set<State>([null])]))
  /** Of what was put and not touched since. */
  readonly #tags = new Map<string, string>()
  #count = 0

  constructor(
    readonly objects: Objects,
    readonly random: Random,
    readonly prefix: string,
  ) {}

  /** What is there, through a line without faults, must be allowed. */
  async check(clean: Objects): Promise<void> {
    for (const key of KEYS) {
      const found = await clean.get(this.prefix + key).catch(error => {
        if (error.code !== 'NOT_FOUND') throw error
        return null
      })
      this.#is(key, found && latin1(found))
    }
    this.#listed(await clean.list({ prefix: this.prefix }))
    for (const { key, upload } of await clean.uploads(this.prefix)) await clean.abortUpload(key, upload)
  }

  async put(): Promise<void> {
    const [key, content] = [this.random.pick(KEYS), this.#content()]
    await this.#change([key], [content], () => this.objects.put(this.prefix + key, binary(content)), key)
  }

  async putIf(): Promise<void> {
    const [key, content] = [this.random.pick(KEYS), this.#content()]
    const etag = this.#tags.get(key)
    const condition = etag === undefined ? { ifAbsent: true } : { ifMatch: etag }
    const fits = [...this.#states(key)].every(state => (etag === undefined ? !isThere(state) : isThere(state)))
    const before = this.#states(key)
    const code = await this.#change(
      [key],
      [content],
      () => this.objects.put(this.prefix + key, binary(content), condition),
      key,
      ['CONFLICT'],
    )
    if (code !== 'CONFLICT') return
    if (fits && before.size === 1) throw new Error(`CONFLICT though ${key} is as it was`)
    this.#may.set(key, before)
    this.#tags.delete(key)
  }

  async copy(): Promise<void> {
    const source = this.random.pick(KEYS)
    const target = this.random.pick(KEYS.filter(key => key !== source))
    const states = [...this.#states(source)].filter(isThere)
    const work = () => this.objects.copy(this.prefix + source, this.prefix + target)
    const code = await this.#change([target], states, work, undefined, ['NOT_FOUND'])
    if (code === 'NOT_FOUND') this.#is(source, null)
    if (code === undefined) this.#narrow(source, isThere, 'copied')
  }

  async remove(): Promise<void> {
    const key = this.random.pick(KEYS)
    await this.#change([key], [null], () => this.objects.remove(this.prefix + key))
  }

  async removeAll(): Promise<void> {
    const keys = [this.random.pick(KEYS), this.random.pick(KEYS)]
    await this.#change(keys, [null], () => this.objects.removeAll(keys.map(key => this.prefix + key)))
  }

  async upload(): Promise<void> {
    const [key, content] = [this.random.pick(KEYS), this.#content()]
    const path = this.prefix + key
    let upload: string | undefined
    let done = false
    // Before it is completed, nothing has changed.
    await this.#ask(async () => {
      upload = await this.objects.beginUpload(path)
      const etag = await this.objects.uploadPart(path, upload, 1, binary(content))
      const complete = () => this.objects.completeUpload(path, upload!, [{ number: 1, etag }])
      // NOT_FOUND: an attempt was done, and its answer was lost.
      done = (await this.#change([key], [content], complete, undefined, ['NOT_FOUND'])) === undefined
    })
    if (upload !== undefined && !done) await this.#ask(() => this.objects.abortUpload(path, upload!))
  }

  async get(): Promise<void> {
    const key = this.random.pick(KEYS)
    const { code, result } = await this.#ask(() => this.objects.get(this.prefix + key), ['NOT_FOUND'])
    if (result) this.#is(key, latin1(result))
    if (code === 'NOT_FOUND') this.#is(key, null)
  }

  async range(): Promise<void> {
    const key = this.random.pick(KEYS)
    const [at, length] = [this.random.below(BYTES_MAX), this.random.below(BYTES_MAX)]
    const { code, result } = await this.#ask(() => this.objects.get(this.prefix + key, { at, length }), ['NOT_FOUND'])
    const piece = result && latin1(result)
    if (piece !== undefined)
      this.#narrow(key, state => isThere(state) && state.slice(at, at + length) === piece, `${at}+${length}`)
    if (code === 'NOT_FOUND') this.#is(key, null)
  }

  async head(): Promise<void> {
    const key = this.random.pick(KEYS)
    const { result } = await this.#ask(() => this.objects.head(this.prefix + key))
    if (result !== undefined) this.#has(key, result)
  }

  async list(): Promise<void> {
    const { result } = await this.#ask(() => this.objects.list({ prefix: this.prefix }))
    if (result) this.#listed(result)
  }

  #listed({ objects }: ListPage): void {
    const strange = objects.filter(({ key }) => !KEYS.includes(key.slice(this.prefix.length)))
    if (strange.length > 0) throw new Error(`a listing with ${JSON.stringify(strange)}`)
    for (const key of KEYS) this.#has(key, objects.find(one => one.key === this.prefix + key) ?? null)
  }

  #has(key: string, found: Pick<ObjectHead, 'size'> | null): void {
    this.#narrow(key, state => (state?.length ?? null) === (found?.size ?? null), JSON.stringify(found))
  }

  #is(key: string, found: State): void {
    this.#narrow(key, state => state === found, JSON.stringify(found?.slice(0, 40) ?? null))
  }

  #states = (key: string) => this.#may.get(key)!

  #narrow(key: string, fits: (state: State) => boolean, found: string): void {
    const left = new Set([...this.#states(key)].filter(fits))
    const known = [...this.#states(key)].map(state => `${state?.length ?? 'none'}: ${state?.slice(0, 10)}`)
    if (left.size === 0) throw new Error(`${key} is ${found}, which is none of ${JSON.stringify(known)}`)
    this.#may.set(key, left)
  }

  /** `taggedAs`: the key that the result is the tag of. @returns the code of its failure */
  async #change<T>(
    keys: string[],
    states: State[],
    work: () => Promise<T>,
    taggedAs?: string,
    codes: Code[] = [],
  ): Promise<Code | undefined> {
    const { code, result } = await this.#ask(work, codes)
    for (const key of keys) {
      this.#tags.delete(key)
      this.#may.set(key, new Set(code === undefined ? states : [...this.#states(key), ...states]))
    }
    if (taggedAs !== undefined && code === undefined) this.#tags.set(taggedAs, result as string)
    return code
  }

  /** Only what may pass may go wrong, and what `codes` name. */
  async #ask<T>(work: () => Promise<T>, codes: Code[] = []): Promise<{ code?: Code; result?: T }> {
    try {
      return { result: await work() }
    } catch (error) {
      const { code } = error as { code: Code }
      if (![...temporaryCodes, ...codes].includes(code)) throw error
      return { code }
    }
  }

  /** Like no other, and of any length. */
  #content(): string {
    const name = `${this.#count++} of ${this.prefix}|`
    return name + latin1(this.random.bytes(this.random.below(BYTES_MAX)))
  }
}

const latin1 = (bytes: Uint8Array) => Buffer.from(bytes).toString('latin1')
const binary = (content: string) => new Uint8Array(Buffer.from(content, 'latin1'))
