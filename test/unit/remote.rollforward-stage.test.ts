// What a batch leaves in the stage goes with it, also from a remote that answers only now and then.
import { constants } from 'node:fs'
import { describe, expect, test } from '@jest/globals'
import { faulty } from '../../src/remote/faulty.js'
import { memTree } from '../../src/remote/mem-tree.js'
import { rollforward } from '../../src/remote/rollforward.js'
import { listAll, STAGE } from '../../src/remote/rollforward-stage.js'
import type { Tree, TreeChange } from '../../src/remote/tree.js'
import { claimOf } from '../remotes/commits.js'

const attributes = { mode: constants.S_IFREG | 0o644, uid: 0, gid: 0, atimeNs: 1n, mtimeNs: 2n }
const FILES = 20

/** A batch that makes files, and one that changes each in place, so that the stage has a name of every one. */
async function twoBatches(remote: Tree): Promise<void> {
  const tree = rollforward(remote, { alive: () => false })
  await tree.claim(claimOf('w'))
  for (const number of [1, 2]) {
    const changes: TreeChange[] = []
    for (let file = 0; file < FILES; file++) {
      const path = `f${file}`
      const expected = (await tree.stat(path))?.version
      const content = { inline: [{ at: 0, bytes: Buffer.from(`batch ${number}`) }] }
      const change = { path, size: 7, attributes, content, otherwise: `${path}.ours` }
      changes.push(
        expected === undefined
          ? { do: 'put', ...change, expect: null }
          : { do: 'patch', ...change, floor: 7, expect: expected },
      )
    }
    await tree.commit({ writer: 'w', number, cutAtMs: 0, changes })
    await tree.settle()
  }
  await tree.release()
}

async function staged(tree: Tree): Promise<string[]> {
  const stages = await listAll(tree, STAGE)
  const inside = await Promise.all(stages.map(({ name }) => listAll(tree, `${STAGE}/${name}`)))
  return inside.flatMap(entries => entries.map(({ name }) => name)).filter(name => name !== 'root')
}

describe('a stage', () => {
  test.each([1, 2, 3])('is empty after its last batch, though every second removal fails (seed %d)', async seed => {
    const plain = memTree()
    const remote = faulty(plain, { seed, errorRate: 0.5, only: ['remove'] })
    await twoBatches(remote)
    expect(remote.faults.errors).toBeGreaterThan(FILES / 2)
    expect(await staged(plain)).toEqual([])
  })
})
