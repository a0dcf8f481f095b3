// Buckets that go back and forth between a mount of ours and the tools that others use for them.
import { randomUUID } from 'node:crypto'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, beforeEach, expect } from '@jest/globals'
import { type Place, runs } from '../fixtures/daemon.js'
import { requires } from '../fixtures/requires.js'
import { makeBucket, placeOnRgw, rgwEnv, startRgw } from '../fixtures/rgw.js'
import type { Rgw } from '../fixtures/rgw-daemon.js'
import { cleanup, sh } from '../fixtures/trees.js'

const { describe, test } = requires('rgw', 'fuse', 'built', 'root', 'aws', 'rclone', 's3fs')
const TEST_MS = 120_000

/** What can be seen of a tree: names, types, modes, owners, whole seconds, targets, bytes. */
const LOOK = `find . -mindepth 1 \\( -type f -printf '%p %y %m %U %G %Ts ' -exec sha1sum {} \\; -o -printf '%p %y %m %U %G %l\\n' \\) | sort`
const MAKE = `
mkdir -p d/e; echo one > d/one; head -c 9000000 /dev/urandom > large; : > empty; ln -s d/one link
echo 'odd' > 'odd name & é +'
chmod 750 d; chmod 600 d/one; chmod 755 large; chown 12:34 empty
touch -d '2001-02-03 04:05:06' d/one large empty 'odd name & é +'
`

let server: Rgw
let place: Place
let bucket: string
let prefix: string
/** Of the tools. */
let env: NodeJS.ProcessEnv
let times = 0

describe('a bucket', () => {
  beforeAll(async () => {
    server = await startRgw()
    bucket = await makeBucket(server)
  }, 200_000)
  beforeEach(async () => {
    prefix = randomUUID()
    place = await placeOnRgw(server, `s3://${bucket}/${prefix}`)
    const { endpoint, accessKeyId, secretAccessKey } = server
    writeFileSync(join(place.folder, 'passwd'), `${accessKeyId}:${secretAccessKey}`, { mode: 0o600 })
    const aws = join(place.folder, 'aws.config')
    writeFileSync(aws, '[default]\ns3 =\n  addressing_style = path\n')
    env = {
      ...place.env,
      ...rgwEnv(server),
      ...{ AWS_CONFIG_FILE: aws, AWS_EC2_METADATA_DISABLED: 'true', LANG: 'C.UTF-8' },
      ...{ RCLONE_CONFIG: '/dev/null', RCLONE_CONFIG_R_TYPE: 's3', RCLONE_CONFIG_R_PROVIDER: 'Ceph' },
      ...{ RCLONE_CONFIG_R_ENDPOINT: endpoint, RCLONE_CONFIG_R_ENV_AUTH: 'true', RCLONE_CONFIG_R_REGION: 'us-east-1' },
    }
  })

  const tool = (script: string, cwd = place.folder) =>
    sh(script, { cwd, env: { ...env, B: bucket, P: prefix, E: server.endpoint, M: place.mountpoint } })
  const inMount = (script: string) => sh(script, { cwd: place.mountpoint })
  /** One mount of ours, in which something is done. */
  const mounted = async (script: string) => {
    place.loseCache()
    const daemon = await place.mount()
    const said = await inMount(script)
    expect(await daemon.unmount()).toBe(0)
    return said
  }
  const folder = (name: string) => {
    mkdirSync(join(place.folder, name))
    return join(place.folder, name)
  }
  /** The same bucket, as s3fs mounts it. */
  const s3fs = async (script: string) => {
    const at = folder(`s3fs-${++times}`)
    cleanup(() => runs('umount', ['-l', at]))
    await tool('aws --endpoint-url $E s3api put-object --bucket $B --key $P/ >/dev/null')
    await tool(
      `s3fs $B:/$P ${at} -o url=$E,use_path_request_style,passwd_file=${place.folder}/passwd,enable_noobj_cache`,
    )
    const said = await tool(script, at)
    await tool(`fusermount3 -u ${at} || umount ${at}`)
    return said
  }
  const plain = 'find . -type f | sort | xargs -d "\\n" sha1sum'

  test(
    'that a mount has written is read by aws, rclone and s3fs',
    async () => {
      await mounted(MAKE)
      const [seen, bytes] = [await mounted(LOOK), await mounted(plain)]
      expect(await tool('aws --endpoint-url $E s3 cp s3://$B/$P/large - | sha1sum')).toBe(
        await mounted('sha1sum < large'),
      )
      const copied = folder('aws')
      await tool(
        `aws --endpoint-url $E s3 cp --quiet --recursive s3://$B/$P ${copied} --exclude '.pageferry/*' --exclude link`,
      )
      expect(await sh(plain, { cwd: copied })).toBe(bytes)
      const synced = folder('rclone')
      await tool(`rclone copy --metadata r:$B/$P ${synced} --exclude '/.pageferry/**' --exclude link`)
      expect(await sh(plain, { cwd: synced })).toBe(bytes)
      expect(await sh('stat -c %Y large', { cwd: synced })).toBe(await mounted('stat -c %Y large'))
      expect(await s3fs(`${LOOK} | grep -v '^[.]/[.]pageferry'`)).toBe(seen)
    },
    TEST_MS,
  )

  test(
    'that aws and rclone have written is read by a mount',
    async () => {
      const source = folder('source')
      await sh(MAKE, { cwd: source })
      const bytes = await sh(plain, { cwd: source })
      await tool(`aws --endpoint-url $E s3 cp --quiet --recursive --no-follow-symlinks ${source} s3://$B/$P`)
      expect(await mounted(plain)).toBe(bytes)
      await tool(`rclone copy --metadata --ignore-times ${source} r:$B/$P`)
      expect(await mounted(plain)).toBe(bytes)
      const facts = `find . -type f -printf '%p %m %U %G %Ts\\n' | sort`
      expect(await mounted(facts)).toBe(await sh(facts, { cwd: source }))
    },
    TEST_MS,
  )

  test(
    'that s3fs has written is read, and changed, by a mount',
    async () => {
      const seen = await s3fs(`${MAKE}sync; ${LOOK}`)
      expect(await mounted(LOOK)).toBe(seen)
      await mounted('mv d dir; echo more >> dir/one; chmod 640 large')
      expect(await s3fs('cat dir/one; stat -c %a large; ls dir')).toBe('one\nmore\n640\ne\none\n')
    },
    TEST_MS,
  )
})
