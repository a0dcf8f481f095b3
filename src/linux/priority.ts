// Which threads of this process come first. On Linux each has a niceness of its own (setpriority(2), "C library/kernel differences"), and
// anybody may make his own threads nicer.
import { readdirSync } from 'node:fs'
import { getPriority, setPriority } from 'node:os'

/** A third of the processor's time against those who want all of it. */
const NICER = 5
const NICE_MAX = 19

const nicer = () => Math.min(NICE_MAX, getPriority() + NICER)

/** The thread that calls it gives way to the one that made it. */
export const giveWay = (): void => setPriority(nicer())

/** The main thread, which calls it, is as it was, and all others that there are give way to it, and to other programs. */
export function othersGiveWay(): void {
  const nice = nicer()
  for (const thread of readdirSync('/proc/self/task').map(Number)) {
    if (thread === process.pid) continue
    try {
      setPriority(thread, nice)
    } catch {
      // It has ended meanwhile, or is nicer already.
    }
  }
}
