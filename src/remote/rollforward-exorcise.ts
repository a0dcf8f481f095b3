// Whoever lost the lease while it changed a file in place may have a write on its way that nobody can call back. So before its
// batch is finished, each such file becomes a copy of itself: the late write lands in a file that has no name any more.
import { constants } from 'node:fs'
import { logger } from '../base/log.js'
import type { IntentRecord } from './intent.js'
import { parentPath } from './path.js'
import { begunName, patchName } from './rollforward-apply.js'
import { copyFile, type Step } from './rollforward-content.js'
import { ownName } from './rollforward-plan.js'
import { bareNode, isFile, type Stage } from './rollforward-stage.js'
import type { Entry, Path, Tree, TreeChange } from './tree.js'

const log = logger('rollforward')

export interface ExorciseOptions {
  tree: Tree
  stage: Stage
  intent: IntentRecord<TreeChange>
  guard: (signal?: AbortSignal) => Promise<void>
  copyBytesMax: number
  signal?: AbortSignal
}

/** Does it for all files that may have been changed. Can be done again, from wherever it stopped. */
export async function exorcise({ tree, stage, intent, guard, copyBytesMax, signal }: ExorciseOptions): Promise<void> {
  const { batch, changes } = intent
  // Without this mark nothing was changed in place.
  if (!stage.has(begunName(batch))) return
  const step: Step = async work => {
    await guard(signal)
    await work()
  }
  for (const [index, change] of changes.entries()) {
    const old = patchName(batch, index)
    if (change.do !== 'patch' || !stage.has(old)) continue
    const copy = ownName(batch, `live-${index}`)
    const file = await tree.stat(stage.at(old), signal)
    if (!stage.has(copy)) {
      if (!file || !isFile(file)) continue
      // Its name, and ours here. A copy would part it from its other names.
      if (file.nlink > 2 || file.size > copyBytesMax) {
        log.warn('changed in place by a former holder that may still write to it', {
          path: change.path,
          size: file.size,
        })
        continue
      }
      await copyOf(tree, stage, stage.at(old), file, copy, step, signal)
    }
    await swap(tree, stage, { old, copy, path: change.path, file, swap: ownName(batch, `swap-${index}`) }, step, signal)
  }
}

async function copyOf(
  tree: Tree,
  stage: Stage,
  source: Path,
  file: Entry,
  name: string,
  step: Step,
  signal?: AbortSignal,
) {
  const fresh = `${name}.new`
  if (stage.has(fresh)) await step(() => stage.remove(fresh, signal))
  await step(() => stage.make(fresh, bareNode(constants.S_IFREG), signal))
  await copyFile(tree, source, stage.at(fresh), file.size, step, signal)
  if (tree.capabilities.xattrBytesMax > 0) {
    const xattrs = await tree.xattrs(source, signal)
    await step(() => tree.setXattrs(stage.at(fresh), xattrs, signal))
  }
  const { mode, uid, gid, atimeNs, mtimeNs } = file
  await step(() => tree.setAttributes(stage.at(fresh), { mode, uid, gid, atimeNs, mtimeNs }, signal))
  await tree.sync([stage.at(fresh)], signal)
  await step(() => stage.rename(fresh, name, signal))
}

/** The copy takes the file's name, then its place in the stage. */
async function swap(
  tree: Tree,
  stage: Stage,
  { old, copy, path, file, swap: link }: { old: string; copy: string; path: Path; file: Entry | null; swap: string },
  step: Step,
  signal?: AbortSignal,
) {
  const there = await tree.stat(path, signal)
  // If it is another file, it is the copy already, or somebody else's, which stays.
  if (there?.id !== undefined && there.id === file?.id) {
    if (stage.has(link)) await step(() => stage.remove(link, signal))
    const directory = parentPath(path)
    const mtimeNs = (await tree.stat(directory, signal))?.mtimeNs
    await step(() => stage.link(stage.at(copy), link, signal))
    await step(() => stage.place(link, path, signal))
    await step(() => tree.setAttributes(stage.through(directory), { mtimeNs }, signal))
  }
  await step(() => stage.rename(copy, old, signal))
  await tree.sync([stage.at(old), path], signal)
}
