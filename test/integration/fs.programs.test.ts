// Programs that ask much of a file system, on the door alone: what they find wrong here is the door's.
import { readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, expect } from '@jest/globals'
import { mountMemory, run, type TestMount } from '../fixtures/fs-mount.js'
import { requires } from '../fixtures/requires.js'

const { describe } = requires('fuse', 'root')
const { test: withGit } = requires('git')
const { test: withSqlite } = requires('sqlite3')
const { test } = requires('tar')

describe.each([
  ['at once', undefined],
  ['later', { read: 0, write: 0, lookup: 0, make: 0, setAttributes: 0, fsync: 0, unlink: 0, rename: 0, entries: 0 }],
])('programs, when the engine answers %s', (_name, delays) => {
  let mount: TestMount
  beforeAll(async () => {
    mount = await mountMemory({ delays, mode: 0o777 })
  })
  const sh = (script: string) => run('sh', ['-euc', script], { cwd: mount.path })

  withGit('git commits, clones, packs, and finds nothing wrong', async () => {
    await sh(`
      export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
      git init -q repo; cd repo
      for i in 1 2 3 4 5; do mkdir -p d$i; seq $i 2000 > d$i/f; git add .; git commit -qm $i; done
      git mv d1 e1; git commit -qm move; git gc -q
      cd ..; git clone -q --no-hardlinks repo clone; cd clone
      git fsck --full --strict; test -z "$(git status --porcelain)"; git log --oneline | wc -l | grep -qx 6
      cd ..; rm -rf repo clone
    `)
  })

  test('tar unpacks what it packed, owners and holes and all', async () => {
    await sh(`
      mkdir src; cd src; mkdir -p a/b; echo text > a/b/f; ln -s f a/b/l; ln a/b/f hard; mkfifo pipe
      truncate -s 3M sparse; printf x | dd of=sparse bs=1 seek=2000000 conv=notrunc status=none
      chown 12:34 a/b/f; chmod 4750 a/b/f; touch -d '2001-02-03 04:05:06.789' a/b/f
      cd ..; tar --format=posix -S -cf src.tar src; mkdir out; tar -C out -xpf src.tar; tar -C out --compare -f src.tar
      test "$(stat -c '%a %u %g %y' out/src/hard)" = "$(stat -c '%a %u %g %y' src/hard)"
      cmp src/sparse out/src/sparse; test "$(stat -c %h out/src/hard)" = 2
      rm -rf src out src.tar
    `)
  })

  withSqlite.each([['DELETE'], ['TRUNCATE'], ['PERSIST'], ['WAL']])(
    'SQLite keeps its promises in %s mode, with two at once',
    async mode => {
      const database = join(mount.path, `${mode}.db`)
      const sqlite = (sql: string) => run('sqlite3', ['-cmd', '.timeout 20000', database], { input: sql })
      await sqlite(
        `PRAGMA journal_mode=${mode}; PRAGMA synchronous=FULL; CREATE TABLE t (a INTEGER PRIMARY KEY, who TEXT, b BLOB);`,
      )
      const writer = (who: string) =>
        sqlite(
          Array.from({ length: 60 }, () => `INSERT INTO t (who, b) VALUES ('${who}', randomblob(3000));`).join('\n'),
        )
      await Promise.all([writer('one'), writer('two')])
      const found = await sqlite('SELECT who, count(*) FROM t GROUP BY who; PRAGMA integrity_check;')
      expect(found).toBe('one|60\ntwo|60\nok\n')
      await sqlite('DELETE FROM t WHERE a % 2; VACUUM; PRAGMA integrity_check;')
      expect(await sqlite('SELECT count(*) FROM t;')).toBe('60\n')
      for (const name of await readdir(mount.path)) if (name.startsWith(mode)) await rm(join(mount.path, name))
    },
  )

  test('locks are kept by the kernel: the second waits for the first', async () => {
    await sh(`
      (flock 9; sleep 0.3; echo first >> order) 9> lock &
      sleep 0.1
      (flock 9; echo second >> order) 9> lock
      wait; test "$(tr '\\n' ' ' < order)" = 'first second '; rm lock order
    `)
  })

  test('nothing is left open, and nothing was wrong behind the scenes', async () => {
    expect(await readdir(mount.path)).toEqual([])
    const { logged, waiting } = await mount.status()
    expect({ logged, waiting }).toEqual({ logged: [], waiting: 0 })
  })
})
