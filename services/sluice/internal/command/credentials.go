package command

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// clientTokens returns a token source for the registered client of the flags.
func (a *app) clientTokens(flags exportFlags) (bulkclient.TokenSource, error) {
	if flags.base == "" {
		return nil, usage("--base is required")
	}
	signer, err := readKey(flags.clientKey)
	if err != nil {
		return nil, err
	}
	source, err := bulkclient.NewTokenSource(bulkclient.Credentials{
		Base: flags.base, TokenURL: flags.tokenURL, Scope: flags.scope, InsecureHTTP: flags.insecure, Now: a.now,
		Assert: func(endpoint string) (string, error) {
			return signer.SignAssertion(flags.clientID, endpoint, a.now())
		},
	})
	if err != nil {
		return nil, usageError{fmt.Errorf("--token-url: %w", err)}
	}
	return source, nil
}

// readKey reads a private key, and refuses a file that other users can access.
func readKey(file string) (*token.Signer, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("read the client's key: %w", err)
	}
	const most = 64 << 10
	if info.Size() > most {
		return nil, fmt.Errorf("%s is not a private key", file)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s is accessible to other users: its mode is %#o, want 0600", file, info.Mode().Perm())
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the client's key: %w", err)
	}
	signer, err := token.ParseSigner(data, token.AssertionAlgorithms()...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return signer, nil
}

// writeNew writes a file that must not exist: a key is never replaced.
func writeNew(file string, data []byte, mode fs.FileMode) error {
	to, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = to.Write(data)
	if err = errors.Join(err, to.Sync(), to.Close()); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	return nil
}
