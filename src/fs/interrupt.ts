// Whether a program that waits for us is going to die: only then is it right to answer EINTR, for nobody will see it.
import { readFileSync } from 'node:fs'

const SIGKILL_BIT = 1n << 8n

/**
 * A signal that kills a process whole is turned by the kernel into a pending SIGKILL of each of its threads (complete_signal in
 * kernel/signal.c), so that is what to look for. `pid` is that of the thread (0: the kernel itself, or one
 * in a name space that we cannot see); of one that is gone already nobody waits.
 */
export function isDoomed(pid: number): boolean {
  if (pid === 0) return false
  let status: string
  try {
    status = readFileSync(`/proc/${pid}/status`, 'latin1')
  } catch {
    return false
  }
  const pending = /^SigPnd:\s*([0-9a-f]+)/m.exec(status)
  const shared = /^ShdPnd:\s*([0-9a-f]+)/m.exec(status)
  return ((maskOf(pending) | maskOf(shared)) & SIGKILL_BIT) !== 0n
}

const maskOf = (found: RegExpExecArray | null) => (found ? BigInt(`0x${found[1]}`) : 0n)
