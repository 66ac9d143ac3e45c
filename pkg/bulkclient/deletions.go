package bulkclient

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// deletions passes on the type and id of every resource that Bundles delete (M-10), entry by entry: a Bundle may have any
// number of them. A URL is relative or below the base URL. Whatever else than a deletion of one resource an entry has is
// ErrMismatch, because the copy would differ from the server without it. Errors have no text of the Bundles.
func deletions(in io.Reader, base string, take func(typ, id string) error) error {
	r := &manifestReader{in: &bounded{in: in, total: math.MaxInt64}}
	r.decoder = json.NewDecoder(r.in)
	for n := 1; ; n++ {
		token, err := r.token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil || token != json.Delim('{') {
			return fmt.Errorf("%w: line %d is not a JSON object", ErrMismatch, n)
		}
		for r.more() {
			name, err := r.token()
			if err == nil && name == "entry" {
				if err := r.deleted(base, take); err != nil {
					return fmt.Errorf("line %d: %w", n, err)
				}
				continue
			}
			if err != nil || r.skip() != nil {
				return fmt.Errorf("%w: line %d is malformed", ErrMismatch, n)
			}
		}
		if end, err := r.token(); err != nil || end != json.Delim('}') {
			return fmt.Errorf("%w: line %d is malformed", ErrMismatch, n)
		}
	}
}

// deleted reads the entries of a Bundle.
func (r *manifestReader) deleted(base string, take func(typ, id string) error) error {
	if token, err := r.token(); err != nil || token != json.Delim('[') {
		return fmt.Errorf("%w: its entry is not a list", ErrMismatch)
	}
	for r.more() {
		var entry struct{ Request struct{ Method, URL string } }
		if r.decode(&entry) != nil || entry.Request.Method != http.MethodDelete {
			return fmt.Errorf("%w: an entry is no DELETE", ErrMismatch)
		}
		path := strings.TrimPrefix(strings.TrimPrefix(entry.Request.URL, base), "/")
		typ, id, _ := strings.Cut(path, "/")
		if !safeType.MatchString(typ) || !fhir.IsID(id) {
			return fmt.Errorf("%w: an entry does not delete one resource by its id", ErrMismatch)
		}
		if err := take(typ, id); err != nil {
			return err
		}
	}
	if end, err := r.token(); err != nil || end != json.Delim(']') {
		return fmt.Errorf("%w: its entry is malformed", ErrMismatch)
	}
	return nil
}
