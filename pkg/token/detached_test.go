package token_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jws"

	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/pkg/token/tokentest"
)

// set returns the JWKS of a key under a kid.
func set(t *testing.T, kid string, keys ...*ecdsa.PrivateKey) []byte {
	t.Helper()
	var all []json.RawMessage
	for _, key := range keys {
		public, err := token.PublicJWK(&key.PublicKey, kid)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, public)
	}
	text, err := json.Marshal(map[string]any{"keys": all})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func detach(t *testing.T, key *ecdsa.PrivateKey, payload []byte) string {
	t.Helper()
	signer, err := token.NewSigner(key, "k")
	if err != nil {
		t.Fatal(err)
	}
	d, err := signer.Detach("thing")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(d, iotest.OneByteReader(bytes.NewReader(payload))); err != nil {
		t.Fatal(err)
	}
	signature, err := d.Signature()
	if err != nil {
		t.Fatal(err)
	}
	return signature
}

// RFC 7515 appendix F: with the payload in its place it is a JWS, which the JOSE library verifies.
func TestDetached(t *testing.T) {
	key := tokentest.EC(elliptic.P256())
	for n := range 100 { // the numbers of a signature begin with zeros now and then
		payload := bytes.Repeat([]byte{'x'}, n)
		signature := detach(t, key, payload)
		kid, err := token.VerifyDetached(signature, set(t, "k", key), "thing", bytes.NewReader(payload))
		if err != nil || kid != "k" {
			t.Fatalf("%d bytes: kid %q, %v", n, kid, err)
		}
		whole := strings.Replace(signature, "..", "."+base64.RawURLEncoding.EncodeToString(payload)+".", 1)
		if _, err := jws.Verify([]byte(whole), jws.WithKey(jwa.ES256, key.Public())); err != nil {
			t.Fatalf("%d bytes: the library refuses it: %v", n, err)
		}
	}
	if signer, err := token.NewSigner(tokentest.EC(elliptic.P384()), "k"); err != nil {
		t.Error(err)
	} else if _, err := signer.Detach("thing"); err == nil {
		t.Error("signed with a key on P-384")
	}
}

func TestVerifyDetachedRefuses(t *testing.T) {
	key, foreign := tokentest.EC(elliptic.P256()), tokentest.EC(elliptic.P256())
	payload := []byte(`{"a":1}`)
	good := detach(t, key, payload)
	header := func(text string) string {
		return base64.RawURLEncoding.EncodeToString([]byte(text)) + good[strings.Index(good, ".."):]
	}
	last := good[len(good)-2:]
	for name, test := range map[string]struct {
		signature string
		jwks      []byte
		typ       string
		payload   string
	}{
		"another payload":     {good, set(t, "k", key), "thing", `{"a":2}`},
		"a longer payload":    {good, set(t, "k", key), "thing", `{"a":1} `},
		"no payload":          {good, set(t, "k", key), "thing", ``},
		"another signature":   {detach(t, foreign, payload), set(t, "k", key), "thing", `{"a":1}`},
		"a foreign key set":   {good, set(t, "k", foreign), "thing", `{"a":1}`},
		"another kid":         {good, set(t, "l", key), "thing", `{"a":1}`},
		"two keys of the kid": {good, set(t, "k", key, foreign), "thing", `{"a":1}`},
		"another typ":         {good, set(t, "k", key), "other", `{"a":1}`},
		"no key set":          {good, []byte("{}"), "thing", `{"a":1}`},
		"empty":               {"", set(t, "k", key), "thing", `{"a":1}`},
		"cut":                 {strings.TrimSuffix(good, last), set(t, "k", key), "thing", `{"a":1}`},
		"with a payload":      {strings.Replace(good, "..", ".e30.", 1), set(t, "k", key), "thing", `{"a":1}`},
		"none":                {header(`{"alg":"none","kid":"k","typ":"thing"}`), set(t, "k", key), "thing", `{"a":1}`},
		"b64":                 {header(`{"alg":"ES256","kid":"k","typ":"thing","b64":false,"crit":["b64"]}`), set(t, "k", key), "thing", `{"a":1}`},
		"no kid":              {header(`{"alg":"ES256","typ":"thing"}`), set(t, "k", key), "thing", `{"a":1}`},
		"no typ":              {header(`{"alg":"ES256","kid":"k"}`), set(t, "k", key), "thing", `{"a":1}`},
	} {
		if _, err := token.VerifyDetached(test.signature, test.jwks, test.typ, strings.NewReader(test.payload)); !errors.Is(err, token.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	broken := fmt.Errorf("made up")
	if _, err := token.VerifyDetached(good, set(t, "k", key), "thing", iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("a reader that fails: %v", err)
	}
}
