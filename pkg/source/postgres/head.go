package postgres

import (
	"bytes"
	"encoding/binary"
	"errors"

	"github.com/sluice-fhir/sluice/pkg/source"
)

// A head holds the fields of a resource that an export needs besides the body, in one column: an additional column
// costs an export more than storing indexed fields twice, because sending and decoding columns is a large part of the
// work (docs/performance.md).
//
// Format: one byte of version, the attestation in 8 bytes (0: none), then text: the id and the patients that the body
// names, separated by spaces; a newline; the references as in source.Resource.
const (
	headVersion = 1
	headText    = 1 + 8 // where the text begins
)

var errHead = errors.New("the head of a resource is malformed")

// appendHead appends the head of a resource.
func appendHead(head []byte, r *source.Resource) []byte {
	head = append(head, headVersion)
	head = binary.BigEndian.AppendUint64(head, r.Attestation)
	head = append(head, r.ID...)
	for _, patient := range r.Named {
		head = append(append(head, ' '), patient...)
	}
	return append(append(head, '\n'), r.References...)
}

// readHead decodes a head into r. It reuses equal strings of Named from the call before: neighbouring rows are of one
// patient.
func readHead(r *source.Resource, head []byte) error {
	if len(head) < headText || head[0] != headVersion {
		return errHead
	}
	r.Attestation = binary.BigEndian.Uint64(head[1:])
	text, references, found := bytes.Cut(head[headText:], []byte{'\n'})
	if !found {
		return errHead
	}
	r.References = references
	id, rest, more := bytes.Cut(text, []byte{' '})
	r.ID = string(id)
	named := r.Named[:0]
	for more {
		var patient []byte
		patient, rest, more = bytes.Cut(rest, []byte{' '})
		if n := len(named); n < cap(named) && named[:n+1][n] == string(patient) {
			named = named[:n+1]
			continue
		}
		named = append(named, string(patient))
	}
	r.Named = named
	return nil
}
