/// <reference lib="dom" />
// A film in a bucket, its index at the end, over a line of 40 ms and 50 Mbit/s: a real browser plays it from a mount, and ffmpeg decodes it.
import { spawnSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect } from '@jest/globals'
import puppeteer from 'puppeteer-core'
import { s3Objects } from '../../src/remote/s3.js'
import { run, start } from '../fixtures/daemon.js'
import { faultProxy } from '../fixtures/fault-proxy.js'
import { requires } from '../fixtures/requires.js'
import { makeBucket, placeOnRgw, startRgw, useRgw } from '../fixtures/rgw.js'
import type { Rgw } from '../fixtures/rgw-daemon.js'
import { eventually } from '../fixtures/trees.js'

const rgw = requires('rgw', 'fuse', 'built', 'root', 'ffmpeg', 'chromium')

const SECONDS = 60
const BITS_PER_SECOND = 50e6
const page = '<!doctype html><title>film</title><video id="film" src="film.mp4" muted preload="metadata"></video>'

let folder: string
let film: string
let server: Rgw
let bucket: string

/** About 40 MB of H.264, as Chromium plays it, with a key frame each second; ffmpeg puts the index at the end. */
function makeFilm(file: string): void {
  const source = `testsrc2=size=640x360:rate=25,noise=alls=30:allf=t`
  const codec = ['-c:v', 'libx264', '-preset', 'ultrafast', '-b:v', '5M', '-g', '25', '-pix_fmt', 'yuv420p']
  const args = ['-v', 'error', '-y', '-f', 'lavfi', '-i', source, '-t', String(SECONDS), ...codec, file]
  const { status, stderr } = spawnSync('ffmpeg', args, { encoding: 'utf8' })
  if (status !== 0) throw new Error(stderr)
}

const frames = (file: string, second: number) =>
  run('ffmpeg', ['-v', 'error', '-ss', String(second), '-i', file, '-frames:v', '5', '-f', 'framemd5', '-'])

rgw.describe('a film in a bucket', () => {
  beforeAll(async () => {
    server = await startRgw()
    useRgw(server)
    bucket = await makeBucket(server)
    folder = mkdtempSync(join(tmpdir(), 'pageferry-film-'))
    film = join(folder, 'film.mp4')
    makeFilm(film)
    const bytes = readFileSync(film)
    // The index is behind the samples.
    expect(bytes.indexOf('moov')).toBeGreaterThan(bytes.length / 2)
  }, 300_000)
  afterAll(() => {
    if (folder) rmSync(folder, { recursive: true, force: true })
  })

  async function mounted() {
    const prefix = randomUUID()
    const objects = await s3Objects({ bucket, prefix })
    await objects.put('film.mp4', readFileSync(film))
    await objects.put('index.html', Buffer.from(page), { contentType: 'text/html' })
    await objects.close()
    const rate = { downPerSecond: BITS_PER_SECOND / 8, upPerSecond: BITS_PER_SECOND / 8 }
    const proxy = await faultProxy({ target: server.endpoint, delayMs: 20, ...rate })
    const place = await placeOnRgw({ ...server, endpoint: proxy.endpoint }, `s3://${bucket}/${prefix}`)
    return { place, proxy }
  }

  rgw.test(
    'starts, seeks five times and plays in a browser',
    async () => {
      const { place, proxy } = await mounted()
      const daemon = await place.mount('--read-only')
      const media = start(process.execPath, ['test/fixtures/media-server.mjs', place.mountpoint])
      await eventually('the server listens', () => media.out.stdout.includes('http:'))
      const sandbox = process.getuid?.() === 0 ? ['--no-sandbox'] : []
      const browser = await puppeteer.launch({
        executablePath: (await run('sh', ['-c', 'command -v chromium'])).trim(),
        args: [...sandbox, '--autoplay-policy=no-user-gesture-required', `--user-data-dir=${join(folder, 'profile')}`],
      })
      try {
        const tab = await browser.newPage()
        await tab.goto(`${media.out.stdout.trim()}/index.html`)
        const played = await tab.evaluate(
          async (places: number[]) => {
            const video = document.getElementById('film') as HTMLVideoElement
            const once = (event: string) =>
              new Promise<void>((resolve, reject) => {
                video.addEventListener(event, () => resolve(), { once: true })
                video.addEventListener('error', () => reject(new Error(video.error?.message)), { once: true })
              })
            if (video.readyState < 1) await once('loadedmetadata')
            const started = once('playing')
            await video.play()
            await started
            const seeks: number[] = []
            for (const place of places) {
              const sought = once('seeked')
              video.currentTime = place
              await sought
              const before = video.currentTime
              while (video.currentTime < before + 0.5) await once('timeupdate')
              seeks.push(before)
            }
            const { totalVideoFrames, corruptedVideoFrames } = video.getVideoPlaybackQuality()
            return { seeks, duration: video.duration, totalVideoFrames, corruptedVideoFrames, error: video.error }
          },
          [30, 5, 50, 15, 40],
        )
        expect(played.error).toBeNull()
        expect(played.duration).toBeCloseTo(SECONDS, 0)
        expect(played.seeks.map(Math.round)).toEqual([30, 5, 50, 15, 40])
        expect(played.totalVideoFrames).toBeGreaterThan(5 * 10)
        expect(played.corruptedVideoFrames).toBe(0)
      } finally {
        await browser.close()
        media.child.stdin.end()
        await media.ran
      }
      expect(await daemon.unmount()).toBe(0)
      await proxy.close()
    },
    180_000,
  )

  rgw.test(
    'is what it is from its middle, to ffprobe and ffmpeg, and a recorded start is fetched ahead',
    async () => {
      const { place, proxy } = await mounted()
      const there = join(place.mountpoint, 'film.mp4')
      const profile = join(folder, 'profile.txt')
      const first = await place.mount('--read-only', '--record', profile)
      const probe = (file: string) =>
        run('ffprobe', ['-v', 'error', '-show_entries', 'stream=codec_name,nb_frames,duration', '-of', 'csv', file])
      expect(await probe(there)).toBe(await probe(film))
      for (const second of [SECONDS / 2, 3, SECONDS - 5])
        expect(await frames(there, second)).toBe(await frames(film, second))
      expect(await first.unmount()).toBe(0)

      /** Reads that had to wait for the bucket when the film is decoded from its middle, with an empty cache. */
      const waits = async (...flags: string[]) => {
        place.loseCache()
        const daemon = await place.mount('--read-only', ...flags)
        await eventually('nothing is fetched any more', async () => {
          const { bytesRead } = (await daemon.status()).remote
          await new Promise(resolve => setTimeout(resolve, 500))
          return (await daemon.status()).remote.bytesRead === bytesRead
        })
        expect(await frames(there, SECONDS / 2)).toBe(await frames(film, SECONDS / 2))
        const { misses } = (await daemon.status()).reads
        expect(await daemon.unmount()).toBe(0)
        return misses
      }
      const without = await waits()
      expect(without).toBeGreaterThan(0)
      expect(await waits('--prefetch', profile)).toBeLessThan(without)
      await proxy.close()
    },
    180_000,
  )
})
