package httpapi

import (
	"context"
	"net/http"

	"github.com/gin-gonic/gin"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// signatureHeader has the detached JWS over the bytes of a manifest (ADR-0016). Each answer is signed anew, with the key of
// that time, so that the signature always fits the answer that it is in.
const signatureHeader = "X-JWS-Signature"

// sign returns the signature of the page of the manifest, of which it keeps only a hash. It reads all that the answer will
// have, so an unavailable store, a damaged list and a page that does not exist are found before the header is sent.
func (s *service) sign(ctx context.Context, job export.Job, page int) (string, error) {
	signer, err := s.Keys.Signer()
	if err != nil {
		return "", err
	}
	signed, err := signer.Detach(token.ManifestType)
	if err != nil {
		return "", err
	}
	if err := s.render(ctx, signed, job, page); err != nil {
		return "", err
	}
	return signed.Signature()
}

// jwks serves the keys that signatures of manifests verify with, the next one and old ones included.
func (s *service) jwks(c *gin.Context) error {
	keys, err := s.Keys.JWKS()
	if err != nil {
		return err
	}
	c.Header("Cache-Control", "public, max-age=300") // less than the time between a key's publication and its first use
	writeBody(c, http.StatusOK, "application/jwk-set+json", keys)
	return nil
}
