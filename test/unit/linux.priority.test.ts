import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { beforeAll, expect, test } from '@jest/globals'
import { compileOnce } from '../remotes/compiled.js'

beforeAll(compileOnce)

const module = pathToFileURL(join(import.meta.dirname, '..', '..', 'dist', 'src', 'linux', 'priority.js')).href

/** The niceness of the main thread, and all of others, after `call` in a process that has a pool and a worker. */
function nicenessAfter(call: string, before = ''): [number, number[]] {
  const script = `
    import { readdirSync, readFileSync } from 'node:fs'
    import { readFile } from 'node:fs/promises'
    import os from 'node:os'
    import { Worker } from 'node:worker_threads'
    const { giveWay, othersGiveWay } = await import('${module}')
    ${before}
    await readFile('/proc/self/stat')
    const worker = new Worker('setTimeout(() => {}, 1e9)', { eval: true })
    await new Promise(done => worker.on('online', done))
    ${call}
    const niceOf = thread => Number(readFileSync('/proc/self/task/' + thread + '/stat', 'latin1').split(') ')[1].split(' ')[16])
    const others = readdirSync('/proc/self/task').filter(one => Number(one) !== process.pid)
    console.log(JSON.stringify([niceOf(process.pid), [...new Set(others.map(niceOf))]]))
    process.exit()`
  return JSON.parse(execFileSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' }))
}

test('all threads but the main one give way', () => {
  expect(nicenessAfter('othersGiveWay()')).toEqual([0, [5]])
})

test('from whatever the process began with, and no further than there is', () => {
  expect(nicenessAfter('othersGiveWay()', 'os.setPriority(3)')[0]).toBe(3)
  expect(nicenessAfter('othersGiveWay()', 'os.setPriority(17)')).toEqual([17, [19]])
})

test('a thread may give way by itself', () => {
  expect(nicenessAfter('giveWay()')).toEqual([5, [0]])
})
