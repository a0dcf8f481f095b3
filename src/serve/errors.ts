// Our errors as gRPC has them.
import { Metadata, type ServiceError, status } from '@grpc/grpc-js'
import { type Code, toFerryError } from '../base/errors.js'
import { Header } from '../remote/grpc-proto.js'

const statuses: Partial<Record<Code, status>> = {
  NOT_FOUND: status.NOT_FOUND,
  EXISTS: status.ALREADY_EXISTS,
  FORBIDDEN: status.PERMISSION_DENIED,
  NOT_PERMITTED: status.PERMISSION_DENIED,
  READ_ONLY: status.PERMISSION_DENIED,
  NO_SPACE: status.RESOURCE_EXHAUSTED,
  INVALID: status.INVALID_ARGUMENT,
  PROTOCOL: status.INVALID_ARGUMENT,
  NAME_TOO_LONG: status.INVALID_ARGUMENT,
  TOO_LARGE: status.INVALID_ARGUMENT,
  STALE: status.FAILED_PRECONDITION,
  CONFLICT: status.FAILED_PRECONDITION,
  NOT_EMPTY: status.FAILED_PRECONDITION,
  NOT_DIRECTORY: status.FAILED_PRECONDITION,
  IS_DIRECTORY: status.FAILED_PRECONDITION,
  UNSUPPORTED: status.UNIMPLEMENTED,
  UNREACHABLE: status.UNAVAILABLE,
  DEADLINE: status.DEADLINE_EXCEEDED,
  ABORTED: status.CANCELLED,
  CORRUPT: status.DATA_LOSS,
  CLOSED: status.UNAVAILABLE,
}

/** With our own code beside gRPC's, of which there are fewer. */
export function toServiceError(thrown: unknown): Partial<ServiceError> {
  const { code, message, lasting } = toFerryError(thrown)
  const metadata = new Metadata()
  metadata.set(Header.CODE, code)
  if (lasting) metadata.set(Header.LASTING, '1')
  return { code: statuses[code] ?? status.INTERNAL, details: message, metadata }
}
