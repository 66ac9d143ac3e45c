package bulkclient

import (
	"encoding/base64"
	"fmt"
	"strings"
)

// sha256Of returns the SHA-256 in a Repr-Digest header (RFC 9530: a dictionary of byte sequences, as
// sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:), or nil when the header names none.
func sha256Of(header string) ([]byte, error) {
	for member := range strings.SplitSeq(header, ",") { // base64 holds no comma
		key, value, _ := strings.Cut(strings.TrimSpace(member), "=")
		if !strings.EqualFold(key, "sha-256") {
			continue
		}
		value, _, _ = strings.Cut(value, ";")
		value = strings.TrimSpace(value)
		if len(value) < 2 || value[0] != ':' || value[len(value)-1] != ':' {
			return nil, fmt.Errorf("%w: its Repr-Digest is malformed", ErrMismatch)
		}
		sum, err := base64.StdEncoding.DecodeString(value[1 : len(value)-1])
		if err != nil || len(sum) != 32 {
			return nil, fmt.Errorf("%w: its Repr-Digest is malformed", ErrMismatch)
		}
		return sum, nil
	}
	return nil, nil
}
