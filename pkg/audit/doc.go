// Package audit records who did what to which export: FHIR R4 AuditEvents, one JSON line each, in a hash chain
// (docs/audit.md). No library offers AuditEvents in a hash chain.
//
// Record returns nil only after the whole line was passed to the operating system in one write, and with Config.Sync after
// fsync. Any other outcome is an error that wraps export.ErrUnavailable: the caller must refuse the operation. An event that
// could not be recorded is not written later; the next line contains the number of such events.
//
// Each line contains the hash of the previous line, so Verify detects altered, removed, added, repeated and moved lines.
// With a key (HMAC-SHA-256) only holders of the key can create a valid chain. Without one (SHA-256) anybody who can write
// the file can recompute the chain, so it only detects accidental damage. Missing lines at the end are detected only by
// comparing with a hash of the last line that was stored elsewhere.
//
// Open refuses a file that another process writes, a file that is not such a log, and one written under another key. An Event
// has no field for patient ids, tokens or query strings.
package audit
