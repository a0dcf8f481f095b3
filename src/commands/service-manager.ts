// What a service manager (systemd) is told.
import { toFerryError } from '../base/errors.js'
import { notifyManager } from '../linux/notify-socket.js'
import { say } from './report.js'

/** Once: a service manager that waits for it (Type=notify) is told that we are ready. */
export function tellReady(): void {
  const { NOTIFY_SOCKET: socket } = process.env
  delete process.env.NOTIFY_SOCKET
  if (!socket) return
  try {
    notifyManager(socket, 'READY=1')
  } catch (error) {
    say(`the service manager was not told that this is ready: ${toFerryError(error).message}`)
  }
}
