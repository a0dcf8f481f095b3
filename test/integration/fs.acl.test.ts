// POSIX access control lists: the same script on a mount with --acl and on the disk below, which has to print the same.
import { mkdirSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { expect } from '@jest/globals'
import { makePlace, runs } from '../fixtures/daemon.js'
import { requires } from '../fixtures/requires.js'

const { test } = requires('fuse', 'built', 'root', 'python3', 'acl', 'attr')

/** Prints what the lists and modes are after each change, and what user 1000 and group 1001 may do by them. */
const SCRIPT = `
set -eu; cd "$1"; umask 027
show() { for name in "$@"; do stat -c '%n %a' "$name"; getfacl -cnp "$name" "\${more:-}" 2>/dev/null | grep . | paste -sd' '; done; }
may() { # user group test file
  python3 - "$@" <<'P'
import os, sys
user, group, how, name = int(sys.argv[1]), int(sys.argv[2]), getattr(os, sys.argv[3]), sys.argv[4]
os.setgroups([]); os.setgid(group); os.setuid(user)
print(user, group, sys.argv[3], name, os.access(name, how))
P
}
chmod 755 .
echo content > file; chmod 640 file; show file
setfacl -m u:1000:rw file; show file; may 1000 1002 W_OK file; may 1001 1002 R_OK file
chmod 600 file; show file; may 1000 1002 W_OK file
chmod 664 file; show file; may 1000 1002 W_OK file; may 1001 1002 W_OK file
setfacl -m g:1001:r file; show file; may 1003 1001 R_OK file; may 1003 1001 W_OK file
setfacl -x u:1000 file; show file; may 1000 1002 W_OK file
setfacl -b file; show file
mkdir dir; setfacl -d -m u:1000:rwx,g::rx,o::- dir; show dir
echo new > dir/new; mkdir dir/below; mkfifo dir/pipe; ln -s new dir/link; show dir/new dir/below dir/pipe
touch dir/below/deep; show dir/below/deep
may 1000 1002 R_OK dir/new
python3 -c '
import os
fd = os.open("dir", os.O_TMPFILE | os.O_RDWR, 0o666)
os.link(f"/proc/self/fd/{fd}", "dir/nameless", src_dir_fd=0, follow_symlinks=True)'
show dir/nameless
setfacl -k dir; show dir; touch dir/plain; show dir/plain
chown 1005:1006 file; chmod 2770 file; setfacl -m u:1000:x file; show file
cp -p file copy; show copy
setfacl -d -m u:1:r file 2>&1 | grep -o 'Only directories can have default ACLs' || true
getfattr -n system.posix_acl_access file 2>&1 | grep -c 'system.posix_acl_access=' || true
`

const shows = (at: string) => runs('bash', ['-c', SCRIPT, 'bash', at])

test('lists are set, obeyed, inherited and follow modes as on the disk; the remote has them, also after the cache is lost', async () => {
  const place = await makePlace()
  const disk = join(place.folder, 'disk')
  mkdirSync(disk)
  const wanted = await shows(disk)
  expect(wanted).toMatchObject({ status: 0, stderr: '' })
  expect(wanted.stdout).toContain('user:1000:rw-')
  const options = ['--acl', '--allow-other', '--suid']
  const daemon = await place.mount(...options)
  expect(await shows(place.mountpoint)).toEqual(wanted)
  const all = (at: string) => runs('getfacl', ['-Rnp', '.'], { cwd: at })
  const { stdout: lists } = await all(place.mountpoint)
  await daemon.kill()
  const next = await place.mount(...options)
  expect((await all(place.mountpoint)).stdout.split('\n\n').sort()).toEqual(lists.split('\n\n').sort())
  expect(await next.unmount()).toBe(0)
  // No list of ours is there by chance.
  const tops = (at: string) => readdirSync(at).filter(name => name !== '.pageferry')
  expect(tops(place.remote).sort()).toEqual(tops(disk).sort())
  const found = await runs('getfacl', ['-Rnp', ...tops(place.remote)], { cwd: place.remote })
  expect(found.stdout.split('\n\n').sort()).toEqual(
    (await runs('getfacl', ['-Rnp', ...tops(disk)], { cwd: disk })).stdout.split('\n\n').sort(),
  )
  place.loseCache()
  const again = await place.mount(...options)
  expect((await all(place.mountpoint)).stdout.split('\n\n').sort()).toEqual(lists.split('\n\n').sort())
  await again.unmount()
}, 60_000)

test('without --acl there are none; those of the remote stay', async () => {
  const place = await makePlace()
  const at = (directory: string) => join(directory, 'file')
  await runs('sh', ['-c', 'echo x > "$0"; setfacl -m u:1000:rw "$0"', at(place.remote)])
  const daemon = await place.mount()
  const set = await runs('setfacl', ['-m', 'u:1000:r', at(place.mountpoint)])
  expect(set.stderr).toContain('Operation not supported')
  expect((await runs('setfattr', ['-n', 'user.tag', '-v', 'blue', at(place.mountpoint)])).status).toBe(0)
  expect((await runs('getfattr', ['-m', '-', at(place.mountpoint)])).stdout).toBe(
    '# file: file\nuser.tag\n\n'.replace('file\n', `${at(place.mountpoint).slice(1)}\n`),
  )
  expect(await daemon.unmount()).toBe(0)
  const { stdout } = await runs('getfacl', ['-cnp', at(place.remote)])
  expect(stdout).toContain('user:1000:rw-')
}, 60_000)
