// Ordinary programs on the mount, each with its own check; at the end every byte is compared with the remote and with what was written.
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect } from '@jest/globals'
import { type MountDaemon, makePlace, type Place, run } from '../fixtures/daemon.js'
import { requires } from '../fixtures/requires.js'
import { differences, leftovers, sh } from '../fixtures/trees.js'

const TEST_MS = 180_000
const { describe, test } = requires('built', 'fuse', 'root', 'rsync', 'attr', 'npm')
const { test: withGit } = requires('built', 'fuse', 'root', 'git', 'rsync')
const { test: withMake } = requires('built', 'fuse', 'root', 'cc', 'make', 'rsync')
const { test: withFfmpeg } = requires('built', 'fuse', 'root', 'ffmpeg', 'rsync')
const { test: withFio } = requires('built', 'fuse', 'root', 'fio', 'rsync')

describe('programs on the mount', () => {
  let place: Place
  let daemon: MountDaemon
  /** On a plain disk: what is copied to the mount, or made in the same way there. */
  let plain: string
  const on = (script: string) => sh(script, { cwd: place.mountpoint, env: { ...process.env, PLAIN: plain } })
  const beside = (script: string) => sh(script, { cwd: plain })

  beforeAll(async () => {
    place = await makePlace()
    plain = mkdtempSync(join(tmpdir(), 'pageferry-plain-'))
    daemon = await place.mount('--flush-interval', '500ms')
    // A tree with some of everything.
    mkdirSync(join(plain, 'src'))
    await beside(`
      cd src
      for i in $(seq 1 120); do mkdir -p d$((i % 9)); head -c $((i * 311)) /dev/urandom > d$((i % 9))/f$i; done
      head -c 3000000 /dev/urandom > large
      ln -s d1/f1 link; ln -s /nowhere dangling; ln d1/f1 hard; mkfifo fifo; mknod null c 1 3; mkdir -p empty/deep
      chmod 600 d2/f2; chmod 4755 d2/f11; chmod 1777 empty; chown 1234:2345 d3/f3; touch empty/none
      setfattr -n user.note -v hello d4/f4; setfattr -n user.note -v there d4
      touch -d '2001-02-03 04:05:06.789012345' d3/f3; touch -h -d '2002-03-04 05:06:07.5' link; touch -d 1969-12-31T23:00:00Z d5/f5
      touch "$(printf 'name with\\nbreak')" "$(printf 'latin1 \\351')" -- '-x'
    `)
  }, TEST_MS)

  afterAll(() => {
    rmSync(plain, { recursive: true, force: true })
    if (daemon.output.split('\n').length > 2) console.info(daemon.output)
  })

  withGit(
    'git clone of a local repository, fsck, commit',
    async () => {
      await beside(`
        git init -q repo && cd repo && git config user.email test@example.org && git config user.name test
        for i in $(seq 1 20); do mkdir -p d$((i % 5)); head -c $((i * 700)) /dev/urandom > d$((i % 5))/f$i; git add .; git commit -qm "$i"; done
      `)
      await on(`
        git clone -q --no-hardlinks "$PLAIN/repo" clone
        git -C clone fsck --full --strict
        test -z "$(git -C clone status --porcelain)"
        echo more > clone/more; git -C clone add more; git -C clone -c user.email=test@example.org -c user.name=test commit -qm more
        git -C clone gc -q; git -C clone fsck --full; diff -r "$PLAIN/repo/d1" clone/d1
      `)
    },
    TEST_MS,
  )

  test(
    'tar out and in, with a comparison',
    async () => {
      await beside(`tar --xattrs -cf src.tar src; mkdir -p back`)
      await on(`
        mkdir tar
        tar --xattrs -C tar -xpf "$PLAIN/src.tar"
        tar --xattrs -C tar --compare -f "$PLAIN/src.tar"
        tar --xattrs -C tar -cf "$PLAIN/back.tar" src
      `)
      await beside(`tar --xattrs -C back -xpf back.tar`)
      expect(await differences(join(plain, 'src'), join(plain, 'back/src'))).toEqual([])
      expect(await differences(join(plain, 'src'), join(place.mountpoint, 'tar/src'))).toEqual([])
    },
    TEST_MS,
  )

  test(
    'the second rsync moves nothing',
    async () => {
      const moved = async () =>
        (await on(`rsync -aHAX -i --delete "$PLAIN/src/" rsync/`)).split('\n').filter(line => line !== '')
      expect((await moved()).length).toBeGreaterThan(100)
      expect(await moved()).toEqual([])
      await daemon.sync()
      expect(await moved()).toEqual([])
    },
    TEST_MS,
  )

  test(
    'mv to a name that never travels, and back: its bytes are here, and at the remote while it has one that does',
    async () => {
      const atRemote = (name: string) => existsSync(join(place.remote, name))
      await on('head -c 300000 "$PLAIN/src/large" > wal; head -c 5000 "$PLAIN/src/large" > index-shm')
      await daemon.sync()
      await on('! ln wal linked-shm; ! ln index-shm linked; mv wal wal-shm; mv index-shm index')
      await daemon.sync()
      expect([atRemote('wal'), atRemote('wal-shm'), atRemote('index')]).toEqual([false, false, true])
      const isWhole = (name: string, bytes: number) => on(`head -c ${bytes} "$PLAIN/src/large" | cmp - ${name}`)
      await isWhole('wal-shm', 300_000)
      await isWhole(join(place.remote, 'index'), 5000)
      await on('mv wal-shm wal')
      await daemon.sync()
      await isWhole('wal', 300_000)
      await isWhole(join(place.remote, 'wal'), 300_000)
      expect((await daemon.status()).quarantine).toEqual([])
    },
    TEST_MS,
  )

  withMake(
    'a C project is built once, and again only what changed',
    async () => {
      await on(`
        mkdir project && cd project
        for i in 1 2 3 4; do echo "int f$i(void) { return $i; }" > f$i.c; done
        echo 'int f1(void), f2(void), f3(void), f4(void); int main(void) { return f1() + f2() + f3() + f4() - 10; }' > main.c
        printf 'program: main.o f1.o f2.o f3.o f4.o\\n\\tcc -o $@ $^\\n%%.o: %%.c\\n\\tcc -c -o $@ $<\\n' > Makefile
      `)
      const make = () => on(`cd project; make; ./program; ar rc library.a *.o; ar t library.a | wc -l`)
      expect(await make()).toContain('cc -o program')
      expect(await make()).toContain('up to date')
      await on(`sleep 0.1; echo '/* changed */' >> project/f3.c`)
      expect(await make()).toMatch(/^cc -c -o f3\.o f3\.c\ncc -o program.*\n5\n$/)
    },
    TEST_MS,
  )

  test(
    'npm ci of a package with dependencies from files',
    async () => {
      const put = (path: string, value: unknown) => {
        mkdirSync(join(plain, path, '..'), { recursive: true })
        writeFileSync(join(plain, path), typeof value === 'string' ? value : JSON.stringify(value))
      }
      put('npm/packed/package.json', { name: 'packed', version: '1.0.0', main: 'index.js', bin: { packed: 'cli.js' } })
      put('npm/packed/index.js', 'module.exports = 40')
      put('npm/packed/cli.js', '#!/usr/bin/env node\nconsole.log("ran")\n')
      put('npm/app/linked/package.json', { name: 'linked', version: '1.0.0', main: 'index.js' })
      put('npm/app/linked/index.js', 'module.exports = 2')
      const dependencies = { packed: 'file:packed-1.0.0.tgz', linked: 'file:linked' }
      put('npm/app/package.json', { name: 'app', version: '1.0.0', dependencies })
      const npm = `npm --offline --no-audit --no-fund --no-update-notifier --cache "$PLAIN/npm-cache" --loglevel error`
      await on(`cd "$PLAIN/npm/app" && ${npm} pack -s ../packed && ${npm} install --package-lock-only`)
      const out = await on(`
        cp -a "$PLAIN/npm/app" app && cd app && ${npm} ci && ${npm} ci
        node -p 'require("packed") + require("linked")'; node_modules/.bin/packed
      `)
      expect(out.trim().split('\n').slice(-2)).toEqual(['42', 'ran'])
    },
    TEST_MS,
  )

  withFfmpeg(
    'ffmpeg seeks back to move the index of an MP4 to its front',
    async () => {
      const film = `-f lavfi -i testsrc=duration=2:size=320x240:rate=25 -f lavfi -i sine=duration=2 -c:v mpeg4 -c:a aac -flags +bitexact -fflags +bitexact`
      await on(`
        ffmpeg -v error -y ${film} -movflags +faststart front.mp4
        ffmpeg -v error -y ${film} end.mp4
        ffmpeg -v error -y ${film} "$PLAIN/end.mp4"; cmp end.mp4 "$PLAIN/end.mp4"
        ffmpeg -v error -ss 1 -i end.mp4 -f null -; ffmpeg -v error -i front.mp4 -f null -
      `)
    },
    TEST_MS,
  )

  test(
    'cp --sparse keeps bytes, and holes where nobody wrote',
    async () => {
      const out = await on(`
        truncate -s 64M "$PLAIN/sparse"; printf x | dd of="$PLAIN/sparse" bs=1 seek=30000000 conv=notrunc status=none
        head -c 100000 /dev/urandom >> "$PLAIN/sparse"
        cp --sparse=always "$PLAIN/sparse" sparse; cmp "$PLAIN/sparse" sparse
        cp --sparse=auto sparse copy; cmp "$PLAIN/sparse" copy
        cp --sparse=always copy "$PLAIN/copy"; cmp "$PLAIN/sparse" "$PLAIN/copy"
        cp --sparse=auto sparse "$PLAIN/copy2"; cmp "$PLAIN/sparse" "$PLAIN/copy2"
        du -k "$PLAIN/sparse" sparse copy "$PLAIN/copy2" | cut -f1
      `)
      for (const kib of out.trim().split('\n')) expect(Number(kib)).toBeLessThan(1024)
    },
    TEST_MS,
  )

  for (const engine of ['sync', 'psync', 'mmap', 'libaio'])
    withFio(
      `fio verifies what it wrote with ${engine}`,
      async () => {
        const verify = '--size=6M --verify=crc32c --do_verify=1 --verify_fatal=1 --fsync=128'
        const blocks = { mmap: '--bsrange=4k-64k', libaio: '--direct=1 --bsrange=4k-64k --blockalign=4k --iodepth=8' }[
          engine
        ]
        const options = `--rw=randrw --rwmixread=30 ${verify} ${blocks ?? '--bsrange=512-64k'}`
        // Its notes on what is to be verified would lie where it is started.
        await beside(`fio --name=${engine} --directory="${place.mountpoint}" --ioengine=${engine} ${options}`)
      },
      TEST_MS,
    )

  test(
    'after a sync and from an empty cache every byte, time and attribute is what was written',
    async () => {
      await daemon.sync()
      expect(await differences(place.mountpoint, place.remote)).toEqual([])
      expect(await leftovers(place.remote)).toEqual([])
      expect(await daemon.unmount()).toBe(0)
      place.loseCache()
      daemon = await place.mount('--flush-interval', '500ms')
      expect(await differences(place.remote, place.mountpoint)).toEqual([])
      for (const copy of ['rsync', 'tar/src'])
        expect(await differences(join(plain, 'src'), join(place.mountpoint, copy))).toEqual([])
      await on(`test ! -e clone || { git -C clone fsck --full; test -z "$(git -C clone status --porcelain)"; }`)
      const status = await daemon.status()
      expect(status.problems).toEqual([])
      expect(status.cache.corrupt).toBe(0)
      expect(await daemon.unmount()).toBe(0)
      const du = async (folder: string) =>
        Number((await run('du', ['-sk', '--exclude=.pageferry', folder])).split('\t')[0])
      daemon = await place.mount('--read-only')
      const [here, there] = [await du(place.mountpoint), await du(place.remote)]
      expect(Math.abs(here - there)).toBeLessThan(0.05 * there)
      expect(await daemon.unmount()).toBe(0)
    },
    TEST_MS,
  )
})
