package objects

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/minio/minio-go/v7/pkg/encrypt"
)

// CheckServerSide refuses what cannot be a Config.ServerSide, for those who check a configuration and start nothing.
func CheckServerSide(text string) error {
	_, err := parseServerSide(text)
	return err
}

// parseServerSide reads Config.ServerSide.
func parseServerSide(text string) (encrypt.ServerSide, error) {
	keyID, kms := strings.CutPrefix(text, "kms:")
	switch {
	case text == "":
		return nil, nil
	case text == "s3":
		return encrypt.NewSSE(), nil
	case !kms || keyID == "" || strings.ContainsFunc(keyID, func(r rune) bool { return r <= ' ' || r > '~' }):
		return nil, errors.New("server-side encryption is none of s3 and kms:KEY-ID")
	}
	sse, err := encrypt.NewSSEKMS(keyID, nil)
	if err != nil {
		return nil, fmt.Errorf("server-side encryption: %w", err)
	}
	return sse, nil
}

// confirmServerSide compares what the store says of an object with what it was asked for: one that does not know the
// headers stores plaintext without a word.
func (s *Store) confirmServerSide(header http.Header) error {
	if s.sse == nil {
		return nil
	}
	asked := http.Header{}
	s.sse.Marshal(asked)
	want, got := asked.Get(encrypt.SseGenericHeader), header.Get(encrypt.SseGenericHeader)
	if got != want {
		return fmt.Errorf("confirm: the store reports server-side encryption %q, asked was %q", got, want)
	}
	return nil
}
