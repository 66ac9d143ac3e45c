// Package development is a token issuer for the standalone server and the `sluice token` command: one key in a
// folder, made at first use. It promises tokens that pkg/token accepts with the folder's JWKSFile, and a private key
// that only its owner can read. It refuses a key file that others may read or a folder that others may write.
//
// It is no authorization server: whoever can read the folder can be anyone. A deployment uses services/auth or an
// issuer of its own.
package development

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"

	"github.com/sluice-fhir/sluice/pkg/token"
)

// IssuerName is the iss claim of every token that an Issuer signs.
const IssuerName = "urn:sluice:development"

const (
	keyName  = "key.json"  // the private key, a JWK
	jwksName = "jwks.json" // its public half, a JWKS
	maxTTL   = 24 * time.Hour
)

// Issuer signs tokens with the key of its folder. Its methods may be called from any goroutine.
type Issuer struct {
	dir string
	key jwk.Key
}

// Open loads the key of the folder, or makes folder, key and key set when they are not there. Processes that open
// the same folder at the same time get the same key. A key file that is there is never replaced.
func Open(dir string) (*Issuer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("development issuer: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("development issuer: %w", err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("development issuer: folder %s is writable by others", dir)
	}
	key, err := load(filepath.Join(dir, keyName))
	if errors.Is(err, fs.ErrNotExist) {
		if err := create(dir); err != nil {
			return nil, fmt.Errorf("development issuer: make key: %w", err)
		}
		key, err = load(filepath.Join(dir, keyName))
	}
	if err != nil {
		return nil, fmt.Errorf("development issuer: load key: %w", err)
	}
	i := &Issuer{dir: dir, key: key}
	if err := i.publish(); err != nil {
		return nil, fmt.Errorf("development issuer: publish key: %w", err)
	}
	return i, nil
}

// JWKSFile is the path of the key set that verifies the issuer's tokens.
func (i *Issuer) JWKSFile() string { return filepath.Join(i.dir, jwksName) }

// Sign returns a token that is valid from now on for ttl, which is at most 24 hours and is cut to whole seconds. An
// empty subject, scope or audience is refused, and so is a scope that no verifier would accept.
func (i *Issuer) Sign(subject, scope, audience string, ttl time.Duration, now time.Time) (string, error) {
	if subject == "" || scope == "" || audience == "" {
		return "", errors.New("sign token: subject, scope and audience must not be empty")
	}
	if ttl < time.Second || ttl > maxTTL {
		return "", fmt.Errorf("sign token: lifetime %s is not between 1s and %s", ttl, maxTTL)
	}
	if _, err := token.ParseScopes(scope); err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	payload, err := json.Marshal(map[string]any{
		"iss": IssuerName, "sub": subject, "aud": audience, "scope": scope, "jti": rand.Text(),
		"iat": now.Unix(), "exp": now.Unix() + int64(ttl/time.Second),
	})
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	headers := jws.NewHeaders()
	if err := headers.Set(jws.TypeKey, "at+jwt"); err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	signed, err := jws.Sign(payload, jws.WithKey(jwa.ES256, i.key, jws.WithProtectedHeaders(headers)))
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	return string(signed), nil
}

// create puts a fresh key in the folder unless one is there. The key gets its name by a link, which fails when the
// name is taken: of two processes one wins, and no reader ever sees half a file.
func create(dir string) error {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	key, err := jwk.FromRaw(private)
	if err != nil {
		return err
	}
	if err := jwk.AssignKeyID(key); err != nil {
		return err
	}
	data, err := json.Marshal(key)
	if err != nil {
		return err
	}
	written, err := writeTemp(dir, data)
	if err != nil {
		return err
	}
	err = os.Link(written, filepath.Join(dir, keyName))
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	return errors.Join(err, os.Remove(written))
}

// load reads a P-256 private key with a kid.
func load(path string) (jwk.Key, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s may be read or written by others: its mode is %#o, want 0600", path, info.Mode().Perm())
	}
	const most = 64 << 10
	if info.Size() > most {
		return nil, fmt.Errorf("%s is no private key", path)
	}
	data, err := io.ReadAll(file)
	if err != nil {
		return nil, err
	}
	key, err := jwk.ParseKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s is no private key", path) // the library's reason may quote the file
	}
	var private ecdsa.PrivateKey
	if _, ok := key.(jwk.ECDSAPrivateKey); !ok || key.Raw(&private) != nil ||
		private.Curve != elliptic.P256() || key.KeyID() == "" {
		return nil, fmt.Errorf("%s is no P-256 private key with a kid", path)
	}
	return key, nil
}

// publish writes the key set unless it is there as it should be: its readers look at the file's time.
func (i *Issuer) publish() error {
	var private ecdsa.PrivateKey
	if err := i.key.Raw(&private); err != nil {
		return err
	}
	point, err := private.PublicKey.Bytes() // 4, x, y
	if err != nil {
		return err
	}
	half := len(point) / 2
	data, err := json.Marshal(map[string]any{"keys": []any{map[string]string{
		"kty": "EC", "crv": jwa.P256.String(), "use": "sig", "alg": jwa.ES256.String(), "kid": i.key.KeyID(),
		"x": base64.RawURLEncoding.EncodeToString(point[1 : 1+half]),
		"y": base64.RawURLEncoding.EncodeToString(point[1+half:]),
	}}})
	if err != nil {
		return err
	}
	there, err := os.ReadFile(i.JWKSFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if bytes.Equal(there, data) {
		return nil
	}
	written, err := writeTemp(i.dir, data)
	if err != nil {
		return err
	}
	if err := os.Rename(written, i.JWKSFile()); err != nil {
		return errors.Join(err, os.Remove(written))
	}
	return nil
}

// writeTemp writes a file that only its owner can read, complete and synced, under a name of its own.
func writeTemp(dir string, data []byte) (string, error) {
	file, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return "", err
	}
	_, err = file.Write(data)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return "", errors.Join(err, os.Remove(file.Name()))
	}
	return file.Name(), nil
}
