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
	"slices"
	"strings"
)

// Client is a registered client of the token service. It has exactly one of JWKSURL, JWKS and secrets, and can authenticate
// by that method only. MoreSecretHashes is apart from SecretHash because older versions refuse records with it.
type Client struct {
	ID         string          `json:"id"`                    // client_id; see Check for its form
	JWKSURL    string          `json:"jwks_url,omitempty"`    // URL of its key set, https (http on loopback only)
	JWKS       json.RawMessage `json:"jwks,omitempty"`        // its key set, at most 64 KiB
	SecretHash string          `json:"secret_hash,omitempty"` // HashSecret of its secret
	Scope      string          `json:"scope"`                 // space-separated system/ scopes that read

	// MoreSecretHashes are those of further valid secrets, such as the previous one while the client is changed over.
	MoreSecretHashes []string `json:"more_secret_hashes,omitempty"`
}

// maxSecrets is the largest number of secrets that a client may have.
const maxSecrets = 5

// SecretHashes returns the hashes of all valid secrets.
func (c Client) SecretHashes() []string {
	if c.SecretHash == "" {
		return nil
	}
	return append([]string{c.SecretHash}, c.MoreSecretHashes...)
}

const maxInlineSet = 64 << 10

// A client id is part of HTTP Basic, forms and the sub of tokens. Each allowed character has one encoding in all three.
var (
	clientID   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._~:/@-]{0,127}$`)
	secretHash = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// Check returns every problem of a registration. Errors never contain a key or a secret.
func (c Client) Check() error {
	var problems []error
	if !clientID.MatchString(c.ID) {
		problems = append(problems,
			errors.New("the id must be 1 to 128 of A-Z a-z 0-9 . _ ~ : / @ -, and begin with a letter or digit"))
	}
	if count(c.JWKSURL != "", len(c.JWKS) > 0, c.SecretHash != "") != 1 {
		problems = append(problems, errors.New("needs exactly one of a JWKS URL, a JWKS and a secret"))
	}
	if c.JWKSURL != "" {
		problems = append(problems, checkURL("JWKS URL", c.JWKSURL))
	}
	if len(c.JWKS) > 0 {
		problems = append(problems, checkClientKeys(c.JWKS))
	}
	for _, hash := range c.SecretHashes() {
		if !secretHash.MatchString(hash) {
			problems = append(problems, errors.New("the hash of a secret is not 64 lower-case hexadecimal digits"))
		}
	}
	if more := len(c.MoreSecretHashes); more > 0 && c.SecretHash == "" || more >= maxSecrets {
		problems = append(problems, fmt.Errorf("needs 1 to %d hashes of secrets", maxSecrets))
	}
	if _, err := NarrowScopes(c.Scope, c.Scope); err != nil {
		problems = append(problems, fmt.Errorf("scope: %w", err))
	}
	return errors.Join(problems...)
}

// checkClientKeys requires a key that can verify assertions. It refuses private and symmetric keys: once sent here they are
// no longer secret.
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
			if _, present := key[private]; present {
				return errors.New("JWKS: contains a private key: make a new key pair and register its public half")
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
			if key.kid == "" || !key.fits(alg) {
				continue
			}
			if kids[key.kid] {
				return errors.New("JWKS: two keys with the same kid")
			}
			kids[key.kid] = true
		}
	}
	if len(kids) == 0 {
		return errors.New("JWKS: no key with a kid for RS384 (2048 to 8192 bits) or ES384 (P-384)")
	}
	return nil
}

// NewSecret returns a new client secret of 256 random bits.
func NewSecret() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// HashSecret returns the stored form of a secret. Passwords need a slow hash, but a secret of NewSecret does not: 256
// random bits cannot be guessed even with a fast hash.
func HashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// HasSecret reports whether the secret is one of the client's. It takes the same time for every wrong secret, even if the
// client has none.
func (c Client) HasSecret(secret string) bool {
	none := strings.Repeat("-", hex.EncodedLen(sha256.Size)) // no secret has this hash
	given, found := []byte(HashSecret(secret)), 0
	for _, hash := range append(c.SecretHashes(), slices.Repeat([]string{none}, maxSecrets)...)[:maxSecrets] {
		found |= subtle.ConstantTimeCompare([]byte(hash), given)
	}
	return found == 1
}

// Record returns the stored form of the client.
func (c Client) Record() ([]byte, error) {
	record, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("write client: %w", err)
	}
	return record, nil
}

// ParseClient reads a record. It refuses unknown members, because they may be restrictions.
func ParseClient(record []byte) (Client, error) {
	var c Client
	dec := json.NewDecoder(bytes.NewReader(record))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return Client{}, errors.New("client record: malformed")
	}
	if err := c.Check(); err != nil {
		return Client{}, fmt.Errorf("client record: %w", err)
	}
	return c, nil
}
