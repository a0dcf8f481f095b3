import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { expect, test } from '@jest/globals'
import { bootId, commandOf, identityOf, isAlive, startTimeOf } from '../../src/linux/process.js'
import { compile } from '../fixtures/compiled.js'

test('this process is alive, and has a start time', () => {
  const self = identityOf()!
  expect(self).toEqual({ pid: process.pid, startTime: startTimeOf(process.pid), bootId: bootId() })
  expect(self.startTime).toBeGreaterThan(0)
  expect(self.bootId).toMatch(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/)
  expect(isAlive(self)).toBe(true)
})

test('the same pid at another time, or after another boot, is somebody else', () => {
  const self = identityOf()!
  expect(isAlive({ ...self, startTime: self.startTime + 1 })).toBe(false)
  expect(isAlive({ ...self, bootId: '00000000-0000-0000-0000-000000000000' })).toBe(false)
})

test('a command with spaces and parentheses does not shift the fields', async () => {
  const child = spawn('bash', ['-c', 'printf "a) S 1 (b" > /proc/self/comm; echo; exec 1>&-; read'], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  await once(child.stdout, 'data')
  expect(commandOf(child.pid!)).toBe('a) S 1 (b')
  const identity = identityOf(child.pid!)!
  expect(Math.abs(identity.startTime - startTimeOf(process.pid)!)).toBeLessThan(360_000)
  expect(identity.startTime).toBeGreaterThan(startTimeOf(process.pid)!)
  expect(isAlive(identity)).toBe(true)
  child.kill('SIGKILL')
  await once(child, 'exit')
  expect(isAlive(identity)).toBe(false)
  expect(identityOf(child.pid!)).toBeUndefined()
  expect(commandOf(child.pid!)).toBeUndefined()
})

test('a zombie is not alive', async () => {
  // The inner shell ends at once; its parent never waits for it.
  const parent = spawn(
    'python3',
    ['-c', 'import os,time\np=os.fork()\nif p==0: os._exit(0)\nprint(p,flush=True)\ntime.sleep(60)'],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  )
  const [line] = await once(parent.stdout, 'data')
  const pid = Number(String(line))
  for (let i = 0; i < 100 && isAlive({ pid, startTime: startTimeOf(pid)!, bootId: bootId() }); i++)
    await new Promise(resolve => setTimeout(resolve, 10))
  expect(startTimeOf(pid)).toBeDefined()
  expect(isAlive({ pid, startTime: startTimeOf(pid)!, bootId: bootId() })).toBe(false)
  parent.kill('SIGKILL')
  await once(parent, 'exit')
})

test('being an I/O flusher is granted with CAP_SYS_RESOURCE and refused without, and never an error', () => {
  const [, capabilities] = /^CapEff:\s*(\w+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))!
  const granted = ((BigInt(`0x${capabilities}`) >> 24n) & 1n) === 1n
  const { path, remove } = compile('src/linux/process.ts')
  // In a process of its own: it stays with whoever asked for it, and with its children.
  const program = `const { setIoFlusher } = await import('${path}'); console.log(setIoFlusher())`
  const child = spawnSync(process.execPath, ['--input-type=module', '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
    timeout: 20_000,
  })
  remove()
  expect(child.stdout.toString().trim()).toBe(`${granted}`)
})
