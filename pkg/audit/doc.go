// Package audit records who did what to which export, as FHIR R4 AuditEvents, one JSON line each, in a chain of hashes
// (docs/audit.md).
//
// It promises that Record returns nil only after the whole line was handed to the operating system in one write, and
// with Config.Sync after the disk has it. Every other outcome is an error that holds export.ErrUnavailable, is counted,
// and means that the caller has to refuse what it was about to do: nothing happens that is not on record. What could
// not be written is not written later; the next line that can be says how many there were.
//
// Each line holds the hash of the one before it, so that Verify finds every line that was altered, removed, added,
// repeated or moved. Under a key (HMAC-SHA-256) nobody without the key can make such a chain. Without one (SHA-256)
// anybody who can write the file can make the chain anew, and the log proves no more than that it was not damaged by
// accident. Neither shows that lines are missing at the end: whoever wants to know keeps the hash of the last line in
// another place.
//
// It refuses to continue a file that another process writes, one that is no log of this form, and one that was written
// under another key. No line holds a patient's id, a token or a query string, because an Event has no place for them.
package audit
