package token

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Client is a registered client of the token service: how it authenticates, and what it may ask for. It has exactly
// one of JWKSURL, JWKS and SecretHash, and can use no other method than that one.
type Client struct {
	ID         string          `json:"id"`                    // client_id; see Check for its form
	JWKSURL    string          `json:"jwks_url,omitempty"`    // key set, https (http on loopback only)
	JWKS       json.RawMessage `json:"jwks,omitempty"`        // key set itself, at most 64 KiB
	SecretHash string          `json:"secret_hash,omitempty"` // HashSecret of the client's secret
	Scope      string          `json:"scope"`                 // system/ scopes that read, separated by blanks
}

const maxInlineSet = 64 << 10

// A client id goes into HTTP Basic, forms and the sub of tokens: plain characters that none of them spells twice.
var (
	clientID   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._~:/@-]{0,127}$`)
	secretHash = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// Check returns every problem of a registration. No error holds a key or a secret.
func (c Client) Check() error {
	var problems []error
	if !clientID.MatchString(c.ID) {
		problems = append(problems, errors.New("the id wants 1 to 128 of A-Z a-z 0-9 . _ ~ : / @ -, a letter or digit first"))
	}
	methods := 0
	for _, given := range []bool{c.JWKSURL != "", len(c.JWKS) > 0, c.SecretHash != ""} {
		if given {
			methods++
		}
	}
	if methods != 1 {
		problems = append(problems, errors.New("wants exactly one of a JWKS URL, a JWKS and a secret"))
	}
	if c.JWKSURL != "" {
		problems = append(problems, checkURL("JWKS URL", c.JWKSURL))
	}
	if len(c.JWKS) > 0 {
		problems = append(problems, checkClientKeys(c.JWKS))
	}
	if c.SecretHash != "" && !secretHash.MatchString(c.SecretHash) {
		problems = append(problems, errors.New("the hash of the secret is not 64 lower-case hexadecimal digits"))
	}
	if _, err := NarrowScopes(c.Scope, c.Scope); err != nil {
		problems = append(problems, fmt.Errorf("scope: %w", err))
	}
	return errors.Join(problems...)
}

// checkClientKeys wants a key set with a key that an assertion can be verified with, and no private or symmetric one:
// who sends such a key has given it away.
func checkClientKeys(data []byte) error {
	if len(data) > maxInlineSet {
		return errors.New("JWKS: larger than 64 KiB")
	}
	var document struct {
		Keys []map[string]json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &document); err != nil {
		return errors.New("JWKS: not a JSON Web Key Set")
	}
	for _, key := range document.Keys {
		for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"} {
			if _, there := key[private]; there {
				return errors.New("JWKS: holds a private key: make another key pair, and register its public half")
			}
		}
	}
	set, err := parseKeySet(data)
	if err != nil {
		return fmt.Errorf("JWKS: %w", err)
	}
	kids := make(map[string]bool)
	for _, key := range set {
		for _, alg := range AssertionAlgorithms() {
			if key.kid == "" || !fits(alg, key.key) || key.alg != "" && key.alg != alg {
				continue
			}
			if kids[key.kid] {
				return errors.New("JWKS: two keys with one kid")
			}
			kids[key.kid] = true
		}
	}
	if len(kids) == 0 {
		return errors.New("JWKS: no key with a kid for RS384 (2048 to 8192 bits) or ES384 (P-384)")
	}
	return nil
}

// NewSecret returns a fresh client secret of 256 random bits.
func NewSecret() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails: it aborts the process instead
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// HashSecret is what is kept of a secret. One round of SHA-256 suffices where passwords want a slow hash: a secret is
// never chosen by a person but is 256 random bits of NewSecret, and nobody can try those, however fast the hash.
func HashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// HasSecret reports whether the secret is the client's. It takes equally long for every wrong one, and for a client that
// has none.
func (c Client) HasSecret(secret string) bool {
	kept := c.SecretHash
	if kept == "" {
		kept = strings.Repeat("-", hex.EncodedLen(sha256.Size)) // the hash of nothing
	}
	return subtle.ConstantTimeCompare([]byte(kept), []byte(HashSecret(secret))) == 1
}

// Record is the client as it is stored.
func (c Client) Record() ([]byte, error) {
	record, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("write client: %w", err)
	}
	return record, nil
}

// ParseClient reads a record. One with members that are not known here is refused: they may be restrictions.
func ParseClient(record []byte) (Client, error) {
	var c Client
	dec := json.NewDecoder(bytes.NewReader(record))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return Client{}, errors.New("the record of a client cannot be read")
	}
	if err := c.Check(); err != nil {
		return Client{}, fmt.Errorf("the record of a client does not hold: %w", err)
	}
	return c, nil
}
