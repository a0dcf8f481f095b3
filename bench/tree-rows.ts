// Whole trees of many files: looked through again, and unpacked; beside ext4 on the same disk, and rclone.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { directory, dropCaches, mount, pairs, passthrough, run, work } from './harness.js'
import type { Result } from './rows.js'

const ROUNDS = 3

/** `count` files of 4 to 12 KiB, 100 in a directory, which sources would have. */
const TREE = `
import os, random, sys
root, count = sys.argv[1], int(sys.argv[2])
rng = random.Random(1)
unit = rng.randbytes(12 * 1024)
for n in range(count):
    directory = f'{root}/d{n // 10_000}/e{n // 100 % 100}'
    if n % 100 == 0: os.makedirs(directory)
    with open(f'{directory}/f{n}', 'wb') as file: file.write(unit[:4096 + rng.randrange(8192)])
`

const tree = (at: string, count: number) => run('python3', ['-c', TREE, at, String(count)])

/** A file system of its own on the disk that holds the caches. */
function ext4(name: string): { at: string; unmount(): void } {
  const [image, at] = [path.join(work, `${name}.img`), directory(`${name}.ext4`)]
  run('truncate', ['-s', '4G', image])
  run('mkfs.ext4', ['-q', '-F', image])
  run('mount', ['-o', 'loop', image, at])
  return {
    at,
    unmount() {
      run('umount', [at])
      fs.rmSync(image)
    },
  }
}

const timed = (work: () => unknown): number => {
  const began = performance.now()
  work()
  return performance.now() - began
}

const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`

export const faster = (work: string, beside: string, target: number, pair: ReturnType<typeof pairs>): Result => ({
  ...{ work, beside, ours: seconds(pair.ours), theirs: seconds(pair.theirs) },
  ...{ figure: 1 / pair.ratio, target, moreIsBetter: true, unit: 'ratio', spread: pair.ratios.map(ratio => 1 / ratio) },
})

export const treeRows: Record<string, () => Result[]> = {
  'tree-walk': () => {
    const remote = directory('walk.remote')
    tree(remote, 100_000)
    const native = ext4('walk')
    run('cp', ['-r', `${remote}/.`, native.at])
    const ours = mount('walk', remote, ['--read-only'])
    const first = timed(() => run('find', [ours.at, '-type', 'f', '-size', '+11']))
    const walks = {
      find: (at: string) => run('find', [at, '-type', 'f', '-size', '+11']),
      'ls -lR': (at: string) => run('sh', ['-c', 'ls -lR "$0" | wc -l', at]),
    }
    const results = Object.entries(walks).map(([name, walk]) => {
      for (const { at } of [ours, native]) walk(at)
      const pair = pairs(
        ROUNDS,
        () => timed(() => walk(ours.at)),
        () => timed(() => walk(native.at)),
      )
      return faster(`${name} of 100,000 files, once more`, 'the same on ext4', 0.5, pair)
    })
    ours.unmount()
    const alone = mount('walk-alone', remote, ['--read-only', '--no-hold'])
    const unheld = timed(() => run('find', [alone.at, '-type', 'f', '-size', '+11']))
    alone.unmount()
    native.unmount()
    const held = `find of 100,000 files, the first time`
    const pair = { ours: first, theirs: unheld, ratio: first / unheld, ratios: [] }
    return [...results, faster(held, 'with --no-hold', 0.8, pair)]
  },

  untar: () => {
    const archive = archiveOf(70_000)
    const native = ext4('untar')
    const theirs = unpack(archive, native.at)
    native.unmount()
    const ours = mount('untar', directory('untar.remote'), ['--no-hold', '--dirty-limit', '4G'])
    const own = unpack(archive, ours.at)
    ours.kill()
    const pair = (other: number) => ({ ours: own, theirs: other, ratio: own / other, ratios: [own / other] })
    const results = [faster('tar -x of 70,000 files, fsync at the end', 'the same on ext4', 0.5, pair(theirs))]
    // It takes them as long for each file.
    const some = archiveOf(70_000 / SCALE)
    for (const [name, wanted, peer] of [
      ['rclone mount --vfs-cache-mode full', 3, rclone()],
      ['sshfs of this host', 10, sshfs()],
      ['libfuse passthrough_ll in C on tmpfs', 0.7, passthrough()],
    ] as const) {
      if (!peer) continue
      const scaled = unpack(some, peer.at) * SCALE
      peer.unmount()
      results.push(faster('the same', `${name} (a ${SCALE}th of them, times ${SCALE})`, wanted, pair(scaled)))
    }
    return results
  },
}

const SCALE = 20

function archiveOf(count: number): string {
  const [archive, sources] = [path.join(work, `sources-${count}.tar`), directory(`sources-${count}`)]
  tree(sources, count)
  run('tar', ['-cf', archive, '-C', sources, '.'])
  fs.rmSync(sources, { recursive: true })
  return archive
}

/** In ms. */
function unpack(archive: string, at: string): number {
  const folder = path.join(at, 'unpacked')
  fs.mkdirSync(folder)
  return timed(() => run('sh', ['-c', 'tar -xf "$0" -C "$1" && sync "$1"', archive, folder]))
}

/** Of a directory of this disk; null: it is not installed. */
function rclone(): { at: string; unmount(): void } | null {
  const [at, cache] = [directory('rclone.mount'), directory('rclone.cache')]
  const options = ['--vfs-cache-mode', 'full', '--cache-dir', cache, '--daemon', '--config', '/dev/null']
  const done = spawnSync('rclone', ['mount', directory('rclone.remote'), at, ...options], { encoding: 'utf8' })
  if (done.status !== 0) return null
  dropCaches()
  return { at, unmount: () => void spawnSync('umount', [at]) }
}

/** The same of a directory of this disk, by an sshd of its own that listens nowhere: ssh runs it on a pipe. */
function sshfs(): { at: string; unmount(): void } | null {
  const [at, folder] = [directory('sshfs.mount'), directory('sshfs')]
  const [key, settings] = [path.join(folder, 'key'), path.join(folder, 'sshd_config')]
  const made = spawnSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', key], { encoding: 'utf8' })
  if (made.error) return null
  const lines = [`HostKey ${key}`, `AuthorizedKeysFile ${key}.pub`, 'StrictModes no', 'UsePAM no']
  fs.writeFileSync(settings, `${[...lines, 'Subsystem sftp internal-sftp'].join('\n')}\n`)
  fs.mkdirSync('/run/sshd', { recursive: true })
  const proxy = `ProxyCommand=/usr/sbin/sshd -i -f ${settings}`
  const options = [
    '-o',
    proxy,
    '-o',
    `IdentityFile=${key}`,
    '-o',
    'StrictHostKeyChecking=no',
    '-o',
    'UserKnownHostsFile=/dev/null',
  ]
  const there = `${os.userInfo().username}@pageferry.invalid:${directory('sshfs.remote')}`
  const done = spawnSync('sshfs', [there, at, ...options], { encoding: 'utf8' })
  if (done.status !== 0) throw new Error(`sshfs: ${done.stderr || done.error}`)
  dropCaches()
  return { at, unmount: () => void spawnSync('umount', [at]) }
}
