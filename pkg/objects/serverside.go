package objects

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/minio/minio-go/v7/pkg/encrypt"
)

// CheckServerSide validates a Config.ServerSide without opening a Store.
func CheckServerSide(text string) error {
	_, err := parseServerSide(text)
	return err
}

// parseServerSide parses Config.ServerSide.
func parseServerSide(text string) (encrypt.ServerSide, error) {
	keyID, kms := strings.CutPrefix(text, "kms:")
	switch {
	case text == "":
		return nil, nil
	case text == "s3":
		return encrypt.NewSSE(), nil
	case !kms || keyID == "" || strings.ContainsFunc(keyID, func(r rune) bool { return r <= ' ' || r > '~' }):
		return nil, errors.New("server-side encryption is neither s3 nor kms:KEY-ID")
	}
	sse, err := encrypt.NewSSEKMS(keyID, nil)
	if err != nil {
		return nil, fmt.Errorf("server-side encryption: %w", err)
	}
	return sse, nil
}

// confirmServerSide compares the reported encryption with the requested one: a store that does not support the headers
// silently stores plaintext.
func (s *Store) confirmServerSide(header http.Header) error {
	if s.sse == nil {
		return nil
	}
	asked := http.Header{}
	s.sse.Marshal(asked)
	want, got := asked.Get(encrypt.SseGenericHeader), header.Get(encrypt.SseGenericHeader)
	if got != want {
		return fmt.Errorf("confirm: the store reports server-side encryption %q, want %q", got, want)
	}
	return nil
}
