// Package development is a token issuer for the standalone server and the `sluice token` command, with one key in a
// folder. Its tokens verify with the folder's JWKSFile. It refuses a key file that others may read, and a folder that
// others may write.
//
// It is not an authorization server: anyone who can read the folder can sign tokens for any subject. A deployment uses
// services/auth or another issuer.
package development

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform/configfile"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// IssuerName is the iss claim of every token that an Issuer signs.
const IssuerName = "urn:sluice:development"

const (
	keyName  = "key.json"  // the private key, a JWK on P-256
	jwksName = "jwks.json" // its public half, a JWKS
	maxTTL   = 24 * time.Hour
)

// Issuer signs tokens with the key of its folder. Its methods may be called from any goroutine.
type Issuer struct {
	dir    string
	signer *token.Signer
}

// Open loads the key of the folder. It makes the folder, the key and the key set if they are missing, and never replaces
// an existing key. Processes that open the same folder at the same time get the same key.
func Open(dir string) (_ *Issuer, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("development issuer: %w", err)
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("folder %s is writable by others", dir)
	}
	signer, err := load(filepath.Join(dir, keyName))
	if errors.Is(err, fs.ErrNotExist) {
		if err := create(dir); err != nil {
			return nil, fmt.Errorf("make key: %w", err)
		}
		signer, err = load(filepath.Join(dir, keyName))
	}
	if err != nil {
		return nil, fmt.Errorf("load key: %w", err)
	}
	i := &Issuer{dir: dir, signer: signer}
	if err := i.publish(); err != nil {
		return nil, fmt.Errorf("publish key: %w", err)
	}
	return i, nil
}

// JWKSFile returns the path of the key set that verifies the issuer's tokens.
func (i *Issuer) JWKSFile() string { return filepath.Join(i.dir, jwksName) }

// Sign returns a token that is valid from now on for ttl, which is at most 24 hours and is truncated to seconds. It refuses
// an empty subject, scope or audience, and a granular scope.
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
	return i.signer.Sign("at+jwt", map[string]any{
		"iss": IssuerName, "sub": subject, "aud": audience, "scope": scope, "jti": rand.Text(),
		"iat": now.Unix(), "exp": now.Unix() + int64(ttl/time.Second),
	})
}

// create makes a key unless one exists. It links the complete file to its name, which fails when the name exists: one of
// two processes wins, and no reader sees a partial file.
func create(dir string) error {
	private, _, err := token.NewKey(elliptic.P256())
	if err != nil {
		return err
	}
	written, err := writeTemp(dir, private)
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
func load(path string) (*token.Signer, error) {
	const maxKey = 64 << 10
	data, info, err := configfile.ReadStable(path, maxKey)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s may be read or written by others: its mode is %#o, must be 0600", path, info.Mode().Perm())
	}
	signer, err := token.ParseSigner(data, "ES256")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return signer, nil
}

// publish writes the key set unless the file already has it, because verifiers read a changed file again.
func (i *Issuer) publish() error {
	public, err := i.signer.PublicJWK()
	if err != nil {
		return err
	}
	data, err := json.Marshal(map[string]any{"keys": []any{public}})
	if err != nil {
		return err
	}
	existing, err := os.ReadFile(i.JWKSFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if bytes.Equal(existing, data) {
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

// writeTemp writes and syncs a file with a unique name that only its owner can read.
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
