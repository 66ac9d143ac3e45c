package postgres

import (
	"bytes"
	"encoding/binary"
	"errors"

	"github.com/sluice-fhir/sluice/pkg/source"
)

// A head holds what an export needs of a resource beside its body. It stands in one column, and what is indexed stands
// in columns besides, because each further column of a row costs an export more than reading it twice: the server's
// sending and our taking apart are a good part of all its work (docs/performance.md).
//
// Its form: the version, the attestation in 8 bytes (0: none), and then as text the id and the patients that the
// body names, separated by spaces, a newline, and the references as in source.Resource.
const (
	headVersion = 1
	headText    = 1 + 8 // where the text begins
)

var errHead = errors.New("a resource whose head cannot be read")

// appendHead writes the head of a resource.
func appendHead(head []byte, r *source.Resource) []byte {
	head = append(head, headVersion)
	head = binary.BigEndian.AppendUint64(head, r.Attestation)
	head = append(head, r.ID...)
	for _, patient := range r.Named {
		head = append(append(head, ' '), patient...)
	}
	return append(append(head, '\n'), r.References...)
}

// readHead fills r with what its head says. The strings of Named are kept from one call to the next where they are the
// same: rows of one patient stand together.
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
