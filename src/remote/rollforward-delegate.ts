// What each remote that can commit has in common: the contract is the chain's.
import type { Batch, Claim, Claimed, Commits, Holder, Outcome } from './commits.js'
import type { ChainCommits } from './rollforward-commits.js'

export abstract class Committing<Change> implements Commits<Change> {
  protected readonly commits: ChainCommits<Change>

  constructor(commits: ChainCommits<Change>) {
    this.commits = commits
  }

  claim(claim: Claim, signal?: AbortSignal): Promise<Claimed> {
    return this.commits.claim(claim, signal)
  }
  renew(signal?: AbortSignal): Promise<void> {
    return this.commits.renew(signal)
  }
  release(signal?: AbortSignal): Promise<void> {
    return this.commits.release(signal)
  }
  holder(signal?: AbortSignal): Promise<Holder | null> {
    return this.commits.holder(signal)
  }
  stage(batch: number, id: string, at: number, from: Uint8Array, signal?: AbortSignal): Promise<void> {
    return this.commits.stage(batch, id, at, from, signal)
  }
  commit(batch: Batch<Change>, signal?: AbortSignal): Promise<void> {
    return this.commits.commit(batch, signal)
  }
  settle(signal?: AbortSignal): Promise<Outcome> {
    return this.commits.settle(signal)
  }
}
