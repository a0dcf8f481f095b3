// How a mount begins without somebody who types it: mount(8) and /etc/fstab, systemd; and without root.
import { spawn } from 'node:child_process'
import { chmodSync, chownSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { expect, test as plain } from '@jest/globals'
import { helperArguments } from '../../src/commands/mount-helper.js'
import { cliPath, type Place, runs } from '../fixtures/daemon.js'
import { requires } from '../fixtures/requires.js'
import { placeForTest } from '../fixtures/trees.js'

const NOBODY = 65_534
const TEST_MS = 90_000
const document = readFileSync('docs/BOOT.md', 'utf8')

/** What stands in the document below that comment. */
const blockOf = (comment: string): string => {
  const [, block] = document.split(`<!-- ${comment} -->\n`)[1].split(/```\w*\n/)
  return block
}

/** A script as root, whose mounts nobody else sees. */
const alone = (place: Place, script: string) =>
  runs('unshare', ['-m', '--propagation', 'private', 'bash', '--norc', '-euc', script], {
    env: place.env,
    timeoutMs: 60_000,
  })

/** Whatever this finds is there soon. */
async function soon(look: () => boolean): Promise<void> {
  for (const until = Date.now() + 20_000; !look(); await sleep(50))
    if (Date.now() > until) throw new Error(`never: ${look}`)
}

requires('built', 'fuse', 'root', 'unshare', 'overlay').test(
  'mount(8) mounts a line of /etc/fstab, and umount(8) takes it away',
  async () => {
    const place = await placeForTest()
    const [, , , options] = blockOf('fstab').split(/\s+/)
    expect(options).toBe('ro,_netdev,nofail,cache_size=20G,pull=all')
    const own = `noauto,x-systemd.automount,flush-interval=50ms,cache_dir=${place.cacheDir}`
    const line = (more: string) => `${place.remote} ${place.mountpoint} pageferry ${own},${more} 0 0\n`
    writeFileSync(join(place.remote, 'there'), 'there')
    const fstab = join(place.folder, 'fstab')
    const inside = `
      export PATH="$PATH:/usr/sbin:/sbin"
      mkdir '${place.folder}'/{upper,work}
      mount -t overlay -o 'lowerdir=/usr/sbin,upperdir=${place.folder}/upper,workdir=${place.folder}/work' none /usr/sbin
      ln -s '${cliPath()}' /sbin/mount.pageferry
      mount -T '${fstab}' '${place.mountpoint}'
      cat '${place.mountpoint}/there'; echo
      findmnt -no FSTYPE,OPTIONS '${place.mountpoint}' | grep -o 'fuse.pageferry *r[ow]'
      echo new > '${place.mountpoint}/new' || true
      umount '${place.mountpoint}'`
    chmodSync(cliPath(), 0o755)
    writeFileSync(fstab, line(''))
    expect(await alone(place, inside)).toMatchObject({
      status: 0,
      stdout: expect.stringMatching(/there\nfuse.pageferry *rw\n/),
    })
    await soon(() => existsSync(join(place.remote, 'new')))
    writeFileSync(fstab, line(`${options.replace('pull=all', 'colour=red')}`))
    const refused = await alone(place, `rm -rf '${place.folder}'/{upper,work}\n${inside}`)
    expect(refused.status).not.toBe(0)
    expect(refused.stderr).toMatch(/^pageferry: unknown option '--colour'/m)
  },
  TEST_MS,
)

plain.each([
  [
    ['/remote', '/mnt', '-o', 'rw'],
    ['mount', '--daemon', '/remote', '/mnt'],
  ],
  [
    ['/remote', '/mnt', '-sn', '-t', 'pageferry', '-o', 'ro,allow_other,cache_size=5G,x-a=b,comment=c,_netdev,uid=5'],
    ['mount', '--daemon', '--read-only', '--allow-other', '--cache-size', '5G', '--uid', '5', '/remote', '/mnt'],
  ],
  [['/remote', '/mnt', '-fv'], null],
])('mount.pageferry %j', (given, wanted) => {
  expect(helperArguments(given)).toEqual(wanted)
})

/** Listens as systemd does; prints what it is told. */
const MANAGER = `
import socket, sys
name = sys.argv[1]
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.bind('\\0' + name[1:] if name[0] == '@' else name)
print('listening', flush=True)
while True: print(listener.recv(1000).decode(), flush=True)
`

requires('built', 'fuse', 'root', 'python3').test.each(['--hold', '--no-hold'])(
  'a service manager is told when the mount can be used (%s)',
  async hold => {
    const place = await placeForTest()
    const name = hold === '--hold' ? join(place.folder, 'notify') : `@pageferry-${process.pid}`
    const manager = spawn('python3', ['-c', MANAGER, name], { stdio: ['ignore', 'pipe', 'inherit'] })
    try {
      let told = ''
      manager.stdout.setEncoding('utf8').on('data', text => {
        told += text
      })
      await soon(() => told === 'listening\n')
      place.env.NOTIFY_SOCKET = name
      const daemon = await place.mount(hold)
      await soon(() => told === 'listening\nREADY=1\n')
      expect(await daemon.unmount()).toBe(0)
      expect(told).toBe('listening\nREADY=1\n')
    } finally {
      manager.kill()
    }
  },
  TEST_MS,
)

requires('systemd-analyze').test(
  'the units of the document are what systemd takes',
  async () => {
    const place = await placeForTest()
    const names = ['pageferry-photos.service', 'mnt-photos.mount', 'mnt-photos.automount']
    for (const name of names)
      writeFileSync(join(place.folder, name), blockOf(`unit: ${name}`).replace('/usr/bin/pageferry', '/bin/true'))
    const { status, stdout, stderr } = await runs('systemd-analyze', [
      'verify',
      ...names.map(name => join(place.folder, name)),
    ])
    expect({ status, said: (stdout + stderr).split('\n').filter(line => line.includes('photos')) }).toEqual({
      status: 0,
      said: [],
    })
  },
  TEST_MS,
)

requires('built', 'fuse', 'root', 'unshare', 'setpriv', 'fusermount3').test(
  'who is not root mounts, uses, loses the daemon and unmounts',
  async () => {
    const place = await placeForTest()
    for (const path of ['.', 'remote', 'mnt', 'run']) chownSync(join(place.folder, path), NOBODY, NOBODY)
    mkdirSync(join(place.folder, 'bin'))
    writeFileSync(
      join(place.folder, 'bin', 'pageferry'),
      `#!/bin/sh\nexec '${process.execPath}' '${cliPath()}' "$@"\n`,
      { mode: 0o755 },
    )
    Object.assign(place.env, {
      PAGEFERRY_HOLD: 'true',
      PATH: `${place.folder}/bin:${place.env.PATH}`,
      HOME: place.folder,
    })
    const user = join(place.folder, 'user.sh')
    writeFileSync(
      user,
      `set -eu; cd '${place.folder}'; pageferry mount --daemon "$PWD/remote" "$PWD/mnt" >/dev/null
      id -u; echo hello > mnt/a; mkdir mnt/d; stat -c '%U %F' mnt/d
      kill -9 $(pageferry status --json mnt | sed -n 's/.*"pid": \\([0-9]*\\).*/\\1/p')
      cat mnt/a; chown 0 mnt/a 2>/dev/null || echo refused; pageferry sync mnt; ls remote; pageferry umount mnt; ls mnt | wc -l`,
    )
    const device = join(place.folder, 'fuse')
    const script = `mknod -m 666 '${device}' c 10 229; mount --bind '${device}' /dev/fuse
      exec setpriv --reuid ${NOBODY} --regid ${NOBODY} --clear-groups sh '${user}'`
    const { status, stdout, stderr } = await alone(place, script)
    expect({ status, stderr, stdout }).toEqual({
      status: 0,
      stderr: '',
      stdout: `${NOBODY}\nnobody directory\nhello\nrefused\na\nd\n0\n`,
    })
  },
  TEST_MS,
)
