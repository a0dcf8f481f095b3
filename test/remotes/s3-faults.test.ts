// A real S3 server behind a bad line: what comes back is right, or an error that says what was wrong, in time.
import { fork } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect } from '@jest/globals'
import type { Code } from '../../src/base/errors.js'
import { freshSeed, random } from '../../src/base/random.js'
import { deadline } from '../../src/remote/deadline.js'
import { objectStore } from '../../src/remote/object-store.js'
import type { Objects } from '../../src/remote/objects.js'
import { temporaryCodes } from '../../src/remote/retry.js'
import { s3Objects } from '../../src/remote/s3.js'
import { inTime } from '../../src/remote-layers.js'
import { compile } from '../fixtures/compiled.js'
import { type FaultProxy, type FaultProxyOptions, faultProxy } from '../fixtures/fault-proxy.js'
import type { FaultProxyCommand, FaultProxyStatus } from '../fixtures/fault-proxy-daemon.js'
import { canned, type Fault, type Kind, mishaps, type Rule } from '../fixtures/fault-rules.js'
import { long, requires } from '../fixtures/requires.js'
import { bucketForTests } from '../fixtures/rgw.js'
import type { Rgw } from '../fixtures/rgw-daemon.js'
import { objectsSuite } from './objects.js'
import { mix } from './objects-model.js'
import { bytes, fails, storeSuite, text } from './primitives.js'

const rgw = requires('rgw')

/** Of a call with all its attempts: the machine may be busy. */
const CALL_MS = 5_000
/** By which a call may be later than its deadline. */
const SLACK_MS = 2_000
/** Of a test, whose calls may each take their time. */
const TEST_MS = 120_000
/** Of a call that is made once, and never answered. */
const SILENT_MS = 1_000

rgw.describe('a gateway behind a bad line', () => {
  let server: Rgw
  let bucket: string
  beforeAll(async () => {
    ;({ server, bucket } = await bucketForTests())
  }, 200_000)

  /** The same objects through a proxy, once as they are and once as a mount has them; `clean`: beside it, without conditions. */
  async function behind(options: Partial<FaultProxyOptions> = {}) {
    const proxy = await faultProxy({ target: server.endpoint, ...options, rules: [] })
    const prefix = randomUUID()
    const [bare, clean] = await Promise.all([
      s3Objects({ bucket, prefix, endpoint: proxy.endpoint }),
      s3Objects({ bucket, prefix, write: false }),
    ])
    proxy.set({ rules: options.rules ?? [] })
    const end = async () => {
      await Promise.all([bare.close(), clean.close()])
      await proxy.close()
    }
    return { proxy, bare, clean, objects: inTime(bare, CALL_MS), end }
  }
  type Line = Awaited<ReturnType<typeof behind>>

  const test = (name: string, body: (line: Line) => Promise<void>, options?: Partial<FaultProxyOptions>) =>
    rgw.test(
      name,
      async () => {
        const line = await behind(options)
        try {
          await body(line)
        } finally {
          await line.end()
        }
      },
      TEST_MS,
    )

  describe('without faults, and 2 ms away', () => {
    let proxy: FaultProxy
    beforeAll(async () => {
      proxy = await faultProxy({ target: server.endpoint, delayMs: 1 })
    })
    afterAll(() => proxy.close())

    const far = () => s3Objects({ bucket, prefix: randomUUID(), endpoint: proxy.endpoint })
    objectsSuite('S3', async () => ({ remote: await far() }), { count: 1010 })
    storeSuite('S3', async () => ({ remote: objectStore(await far()) }), { objects: 1010 })
  })

  const content = bytes('what is in it, and nothing else')

  /** One call of each kind: what it needs is made first, and `right` is what must come of it. */
  interface Trial {
    kind: Kind
    call: (objects: Objects) => Promise<unknown>
    right: (result: unknown) => unknown
  }
  async function trials(clean: Objects): Promise<Trial[]> {
    const own = randomUUID()
    const key = (name: string) => `${own}/${name}`
    const isThere = async (name: string) => expect(text(await clean.get(key(name)))).toBe(text(content))
    const [etag, first, second, third, fourth] = await Promise.all([
      clean.put(key('a'), content),
      ...['first', 'second', 'third', 'fourth'].map(name => clean.beginUpload(key(name))),
      ...['b', 'c', 'd'].map(name => clean.put(key(name), content)),
      clean.put(key('empty'), bytes('')),
    ])
    const parts = [{ number: 1, etag: await clean.uploadPart(key('first'), first, 1, content) }]
    const piece = { key: key('a'), at: 0, length: content.byteLength, etag }
    const listed = { prefix: key(''), delimiter: '/' }
    return [
      {
        kind: 'head',
        call: objects => objects.head(key('a')),
        right: found => expect(found).toMatchObject({ key: key('a'), size: content.byteLength, etag }),
      },
      {
        kind: 'head',
        call: objects => objects.head(key('empty')),
        right: found => expect(found).toMatchObject({ size: 0 }),
      },
      { kind: 'head', call: objects => objects.head(key('none')), right: found => expect(found).toBeNull() },
      {
        kind: 'get',
        call: objects => objects.get(key('a')),
        right: got => expect(text(got as Uint8Array)).toBe(text(content)),
      },
      {
        kind: 'get',
        call: objects => objects.get(key('a'), { at: 0, length: 1000, etag }),
        right: got => expect(text(got as Uint8Array)).toBe(text(content)),
      },
      {
        kind: 'get',
        call: objects => objects.get(key('a'), { at: content.byteLength, length: 10, etag }),
        right: got => expect(text(got as Uint8Array)).toBe(''),
      },
      {
        kind: 'list',
        call: objects => objects.list(listed),
        right: found =>
          expect((found as { objects: { key: string }[] }).objects.map(one => one.key)).toEqual(
            expect.arrayContaining([key('a'), key('empty')]),
          ),
      },
      { kind: 'put', call: objects => objects.put(key('put'), content), right: () => isThere('put') },
      { kind: 'copy', call: objects => objects.copy(key('a'), key('copy')), right: () => isThere('copy') },
      {
        kind: 'remove',
        call: objects => objects.remove(key('b')),
        right: async () => expect(await clean.head(key('b'))).toBeNull(),
      },
      {
        kind: 'removeAll',
        call: objects => objects.removeAll([key('c'), key('d')]),
        right: async () => expect(await clean.head(key('d'))).toBeNull(),
      },
      {
        kind: 'beginUpload',
        call: objects => objects.beginUpload(key('u')),
        right: id => clean.uploadPart(key('u'), id as string, 1, content),
      },
      {
        kind: 'uploadPart',
        call: objects => objects.uploadPart(key('second'), second, 1, content),
        right: async tag => {
          await clean.completeUpload(key('second'), second, [{ number: 1, etag: tag as string }])
          await isThere('second')
        },
      },
      {
        kind: 'copyPart',
        call: objects => objects.copyPart(key('third'), third, 1, piece),
        right: async tag => {
          await clean.completeUpload(key('third'), third, [{ number: 1, etag: tag as string }])
          await isThere('third')
        },
      },
      {
        kind: 'completeUpload',
        call: objects => objects.completeUpload(key('first'), first, parts),
        right: () => isThere('first'),
      },
      {
        kind: 'abortUpload',
        call: async objects => objects.abortUpload(key('x'), await clean.beginUpload(key('x'))),
        right: async () => expect(await clean.uploads(key('x'))).toEqual([]),
      },
      {
        kind: 'uploads',
        call: objects => objects.uploads(key('fourth')),
        right: found => expect(found).toMatchObject([{ upload: fourth }]),
      },
    ]
  }

  /** The error's code, or 'right'. */
  async function outcome({ kind, call, right }: Trial, objects: Objects): Promise<string> {
    const began = Date.now()
    try {
      const result = await call(objects).catch(error => {
        if (error.name !== 'FerryError') throw error
        return error as { code: Code }
      })
      expect(Date.now() - began).toBeLessThan(CALL_MS + SLACK_MS)
      if (result instanceof Error) return (result as unknown as { code: Code }).code
      await right(result)
      return 'right'
    } catch (error) {
      throw new Error(`${kind}: ${(error as Error).message}`, { cause: error })
    }
  }

  /** A listing has no checksum: a wrong bit in it is for TLS to find. */
  // In jest an error of a socket is of another realm, and the SDK loses its code: it is UNREACHABLE otherwise.
  const isReset: Code[] = ['UNREACHABLE', 'IO']
  const codesOf: Partial<Record<Fault, string[]>> = {
    ...{ slowDown: ['UNREACHABLE'], bare503: ['UNREACHABLE'], internalError: ['IO'] },
    ...{ skewed: ['UNREACHABLE'], expired: ['UNREACHABLE'], noBucket: ['UNREACHABLE'], bare404: ['UNREACHABLE'] },
    ...{ page: ['IO', 'CORRUPT'], nothing: ['IO', 'CORRUPT'], resetBefore: isReset, resetAfter: isReset },
    ...{ silentBefore: ['DEADLINE'], silentAfter: ['DEADLINE'], twice: ['right'], held: ['right'] },
  }
  const onlyBodies: Partial<Record<Fault, Kind[]>> = { flip: ['get'] }
  // What is archived stays so: that is no fault that passes.
  const faults = [...Object.keys(canned), ...mishaps].filter(fault => fault !== 'archived') as Fault[]
  const kinds = ['head', 'get', 'list', 'put', 'copy', 'remove', 'removeAll', 'beginUpload', 'uploadPart'] as Kind[]
  kinds.push('copyPart', 'completeUpload', 'abortUpload', 'uploads', 'listParts')

  describe('each fault', () => {
    let line: Line
    beforeAll(async () => {
      line = await behind()
    })
    afterAll(() => line.end())

    /** How long a call that is made once waits for what will not come. */
    const onceMs = (fault: Fault) => (fault.startsWith('silent') || fault === 'stall' ? SILENT_MS : CALL_MS)

    for (const fault of faults) {
      rgw.test(`${fault}, once for each request, is overcome`, async () => {
        const { proxy, clean, objects } = line
        const tried = await trials(clean)
        const times = (kind: Kind) => tried.filter(trial => trial.kind === kind).length || 1
        const before = proxy.counters.faults[fault] ?? 0
        proxy.set({ rules: (onlyBodies[fault] ?? kinds).map(kind => ({ fault, only: [kind], times: times(kind) })) })
        const outcomes = await Promise.all(tried.map(trial => outcome(trial, objects)))
        proxy.set({ rules: [] })
        expect(outcomes).toEqual(tried.map(() => 'right'))
        expect(proxy.counters.faults[fault]).toBeGreaterThan(before)
      })

      rgw.test(`${fault}, for every request, is an error that may pass`, async () => {
        const { proxy, clean, bare } = line
        const tried = await trials(clean)
        proxy.set({ rules: [{ fault, only: onlyBodies[fault] }] })
        const once = deadline(bare, { ms: onceMs(fault) })
        const outcomes = await Promise.all(tried.map(trial => outcome(trial, once)))
        proxy.set({ rules: [] })
        const allowed = codesOf[fault] ?? ['right', ...temporaryCodes]
        const wrong = outcomes
          .map((code, i) => `${tried[i].kind}: ${code}`)
          .filter((_, i) => !allowed.includes(outcomes[i]))
        expect(wrong).toEqual([])
      })
    }
  })

  test('an answer in XML that ends early is never half an answer', async ({ proxy, clean, bare }) => {
    const keys = Array.from({ length: 3 }, (_, i) => `key-${i}`)
    for (const key of keys) await clean.put(key, content)
    await clean.beginUpload('key-0')
    const listed = async () => (await bare.list({ prefix: '' })).objects.map(({ key }) => key)
    const uploads = async () => (await bare.uploads('')).map(({ key }) => key)
    const answers = async (call: () => Promise<string[]>, wanted: string[]) => {
      const before = proxy.counters.downBytes
      proxy.set({ rules: [] })
      expect(await call()).toEqual(wanted)
      const length = proxy.counters.downBytes - before
      for (let atByte = 0; atByte < length; atByte += long ? 1 : 29) {
        proxy.set({ rules: [{ fault: 'shorter', atByte }] })
        const result = await call().catch(error => error.code as Code)
        if (typeof result !== 'string' || !temporaryCodes.includes(result))
          expect({ atByte, result }).toEqual({ atByte, result: wanted })
      }
    }
    await answers(listed, keys)
    await answers(uploads, ['key-0'])
    proxy.set({ rules: [] })
  })

  test('a burst of SlowDown is waited for', async ({ proxy, objects }) => {
    proxy.set({ rules: [{ fault: 'slowDown', times: 30 }] })
    const keys = Array.from({ length: 20 }, (_, i) => `k${String(i).padStart(2, '0')}`)
    await Promise.all(keys.map(key => objects.put(key, bytes(key))))
    expect(proxy.counters.faults.slowDown).toBe(30)
    expect((await objects.list({ prefix: '' })).objects.map(({ key }) => key)).toEqual(keys)
  })

  for (const fault of ['noBucket', 'bare404', 'expired', 'skewed'] as const)
    test(`nothing vanishes in a storm of ${fault}, and all is there behind it`, async ({
      proxy,
      clean,
      bare,
      objects,
    }) => {
      await clean.put('a', content)
      proxy.set({ rules: [{ fault }] })
      for (const call of [
        () => bare.head('a'),
        () => bare.head('none'),
        () => bare.get('a'),
        () => bare.list({ prefix: '' }),
        () => bare.copy('a', 'b'),
        () => bare.remove('a', { ifMatch: 'x' }),
        () => bare.put('c', content, { ifMatch: 'x' }),
      ])
        await fails(call(), 'UNREACHABLE')
      const waiting = objects.get('a')
      await sleep(300)
      proxy.set({ rules: [] })
      expect(text(await waiting)).toBe(text(content))
    })

  test('a clock that is an hour off is waited for', async ({ proxy, clean, bare, objects }) => {
    await clean.put('a', content)
    // The client sets its own clock by what it is told.
    proxy.set({ skewMs: 3_600_000 })
    await bare.get('a')
    await fails(bare.get('a'), 'UNREACHABLE')
    await fails(bare.head('a'), 'UNREACHABLE')
    proxy.set({ skewMs: 0 })
    expect(text(await objects.get('a'))).toBe(text(content))
  })

  for (const partition of ['hang', 'reset'] as const)
    test(`a partition (${partition}) is an error in time, and ends`, async ({ proxy, clean, bare, objects }) => {
      const [etag] = [await clean.put('a', content), await bare.head('a')]
      const short = inTime(bare, SILENT_MS)
      proxy.set({ partition })
      const began = Date.now()
      const calls = [
        short.get('a'),
        short.head('a'),
        short.list({ prefix: '' }),
        short.put('b', content),
        short.remove('c'),
      ]
      for (const call of calls) call.catch(() => {})
      for (const call of calls) await fails(call, ...(partition === 'hang' ? (['DEADLINE'] as const) : isReset))
      expect(Date.now() - began).toBeLessThan(SILENT_MS + SLACK_MS)
      const waiting = objects.head('a')
      await sleep(200)
      proxy.set({ partition: 'none' })
      expect(await waiting).toMatchObject({ etag })
      await objects.put('b', content)
    })

  rgw.test('the host is lost at every request: what was answered is there', async () => {
    const keys = ['a', 'b', 'c', 'd']
    const reached: boolean[] = []
    for (let stopAfter = 1; stopAfter <= keys.length + 1; stopAfter++) {
      const { proxy, bare, clean, end } = await behind({ seed: stopAfter })
      proxy.set({ stopAfter })
      const answered: string[] = []
      for (const key of keys)
        await bare.put(key, content).then(
          () => answered.push(key),
          error => expect(isReset).toContain(error.code),
        )
      await proxy.settled()
      expect(proxy.stopped).toBe(stopAfter <= keys.length)
      expect(answered).toEqual(keys.slice(0, stopAfter - 1))
      const found = (await clean.list({ prefix: '' })).objects.map(({ key }) => key)
      expect([answered, keys.slice(0, stopAfter)]).toContainEqual(found)
      if (proxy.stopped) reached.push(found.length === stopAfter)
      await end()
    }
    expect(reached.sort()).toEqual(expect.arrayContaining([false, true]))
  })

  test('a conditional put that arrives a second time, late, changes nothing', async ({ proxy, clean, bare }) => {
    const first = await bare.put('a', bytes('1'))
    proxy.set({ rules: [{ fault: 'twice', times: 1 }] })
    const second = await bare.put('a', bytes('2'), { ifMatch: first })
    await bare.put('a', bytes('3'), { ifMatch: second })
    await proxy.settled()
    expect(proxy.counters.requests.put).toBeGreaterThan(2)
    expect(text(await clean.get('a'))).toBe('3')
  })

  test(
    'answers out of their order are each for their own question',
    async ({ proxy, clean, objects }) => {
      const keys = Array.from({ length: 24 }, (_, i) => `k${i}`)
      for (const key of keys) await clean.put(key, bytes(key))
      proxy.set({ rules: [{ fault: 'held', rate: 0.5 }] })
      const order: string[] = []
      const read = async (key: string) => {
        expect(text(await objects.get(key))).toBe(key)
        order.push(key)
      }
      await Promise.all(keys.map(read))
      expect(order).not.toEqual(keys)
    },
    { seed: 1 },
  )

  describe('a bit that is wrong', () => {
    test('is found in what is read whole', async ({ proxy, bare, clean, objects }) => {
      await clean.put('a', content)
      for (let atByte = 0; atByte < content.byteLength; atByte++) {
        proxy.set({ rules: [{ fault: 'flip', atByte }] })
        await fails(bare.get('a'), 'CORRUPT')
        await fails(bare.get('a', { at: 0, length: 1000 }), 'CORRUPT')
      }
      proxy.set({ rules: [{ fault: 'flip', times: 2 }] })
      expect(text(await objects.get('a'))).toBe(text(content))
    })

    test('is not looked for in ranges and in what has another tag', async ({ proxy, bare, clean }) => {
      await clean.put('a', content)
      const upload = await clean.beginUpload('parts')
      const etag = await clean.uploadPart('parts', upload, 1, content)
      await clean.completeUpload('parts', upload, [{ number: 1, etag }])
      expect(text(await bare.get('parts'))).toBe(text(content))
      await bare.copy('parts', 'copy')
      expect(text(await bare.get('copy'))).toBe(text(content))
      proxy.set({ rules: [{ fault: 'flip' }] })
      expect((await bare.get('a', { at: 1, length: 5 })).byteLength).toBe(5)
      expect((await bare.get('parts')).byteLength).toBe(content.byteLength)
    })
  })

  test('distance and width are as they were set, and all is counted', async ({ proxy, bare }) => {
    const large = new Uint8Array(1_000_000)
    await bare.put('a', large)
    const before = structuredClone(proxy.counters)
    proxy.set({ delayMs: 50 })
    let began = performance.now()
    expect(await bare.head('none')).toBeNull()
    // A HEAD that finds nothing, and a GET.
    expect(performance.now() - began).toBeGreaterThan(190)
    proxy.set({ delayMs: 0, downPerSecond: 4_000_000, upPerSecond: 2_000_000 })
    began = performance.now()
    await Promise.all([bare.get('a'), bare.get('a')])
    expect(performance.now() - began).toBeGreaterThan(450)
    began = performance.now()
    await bare.put('b', large)
    expect(performance.now() - began).toBeGreaterThan(450)
    const { requests, upBytes, downBytes } = proxy.counters
    expect([requests.head! - (before.requests.head ?? 0), requests.get! - (before.requests.get ?? 0)]).toEqual([1, 3])
    expect(upBytes - before.upBytes).toBe(1_000_000)
    expect(downBytes - before.downBytes).toBeGreaterThanOrEqual(2_000_000)
  })

  rgw.test('the proxy runs in a process of its own', async () => {
    const { path, remove } = compile('test/fixtures/fault-proxy-daemon.ts')
    const child = fork(path, [JSON.stringify({ target: server.endpoint, seed: 1 })])
    const status = async () => ((await once(child, 'message')) as [FaultProxyStatus])[0]
    const { endpoint } = await status()
    const objects = await s3Objects({ bucket, prefix: randomUUID(), endpoint })
    await objects.put('a', content)
    child.send({ set: { rules: [{ fault: 'slowDown' }] } } satisfies FaultProxyCommand)
    expect((await status()).counters.requests.put).toBeGreaterThan(0)
    await fails(objects.get('a'), 'UNREACHABLE')
    await objects.close()
    child.disconnect()
    await once(child, 'exit')
    remove()
  })

  describe('calls by chance under faults by chance', () => {
    const seldom = { rate: 0.002 }
    const hows: Partial<Record<Fault, Partial<Rule>>> = {
      ...{ silentBefore: seldom, silentAfter: seldom, stall: seldom },
      slowDown: { rate: 0.005, burst: 5 },
    }
    const seeds = Array.from({ length: long ? 40 : 2 }, freshSeed)
    for (const [i, seed] of seeds.entries()) {
      // Lengths and bits that are wrong show only where there is a digest.
      const digests = i % 2 === 0
      const possible = faults.filter(fault => digests || (fault !== 'flip' && fault !== 'shorter'))
      const name = `end in a state that is allowed (seed ${seed}, ${digests ? 'with' : 'without'} wrong bits)`
      test(
        name,
        async ({ proxy, clean, bare }) => {
          const rules = possible.map(fault => ({ fault, only: onlyBodies[fault], rate: 0.02, ...hows[fault] }))
          proxy.set({ rules })
          const mixes = [0, 1, 2].map(n => {
            const objects = inTime(bare, CALL_MS)
            const { settled } = proxy
            return mix({ objects, random: random(seed + n), prefix: `${n}/`, calls: 40, digests, settled })
          })
          const models = await Promise.all(mixes)
          expect(Object.keys(proxy.counters.faults).length).toBeGreaterThan(5)
          proxy.set({ rules: [] })
          await proxy.settled()
          for (const model of models) await model.check(clean)
        },
        { seed },
      )
    }
  })
})
