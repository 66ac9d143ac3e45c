package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/pkg/token/development"
)

// quickstart is the file that a standalone server writes into its state folder when it is ready.
type quickstart struct {
	BaseURL string `json:"base_url"`
	Subject string `json:"subject"`
	Scope   string `json:"scope"`
}

func readQuickstart(state string) (quickstart, error) {
	var quick quickstart
	name := filepath.Join(state, "quickstart.json")
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return quick, fmt.Errorf("%s is missing: start the standalone server with --state %s", name, state)
	}
	if err != nil {
		return quick, fmt.Errorf("read the state folder: %w", err)
	}
	if err := json.Unmarshal(text, &quick); err != nil {
		return quick, fmt.Errorf("read %s: %w", name, err)
	}
	return quick, nil
}

// openIssuer opens the development issuer of a standalone server. It never creates one: every server would
// refuse its tokens.
func openIssuer(state string) (*development.Issuer, error) {
	dir := filepath.Join(state, "issuer")
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("%s has no development issuer: it is not the state folder of a standalone server: %w", state, err)
	}
	issuer, err := development.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the development issuer: %w", err)
	}
	return issuer, nil
}

func (a *app) token() *cobra.Command {
	var state, subject, scope, audience string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "token --state DIR --subject NAME --scope SCOPES",
		Short: "Sign a token with the development issuer",
		Long: `Sign a token with the development issuer of a standalone server and print it. It is for development: no other
server accepts such a token. The JSON of --json has token, subject, scope, audience and expires.`,
		Example: `  sluice token --state .state --subject demo --scope 'system/*.rs'
  sluice token --state .state --subject demo --scope 'system/Patient.rs system/Group.rs' --ttl 1h`,
		RunE: a.run(func(context.Context, []string) error {
			if subject == "" || scope == "" {
				return usage("--subject and --scope must not be empty")
			}
			if err := token.CheckScopes(scope); err != nil {
				return usage("--scope: %w (an example: system/*.rs)", err)
			}
			if ttl <= 0 {
				return usage("--ttl must be positive")
			}
			if audience == "" {
				quick, err := readQuickstart(state)
				if err != nil {
					return fmt.Errorf("find the audience (or set --audience): %w", err)
				}
				audience = quick.BaseURL
			}
			issuer, err := openIssuer(state)
			if err != nil {
				return err
			}
			now := time.Now()
			signed, err := issuer.Sign(subject, scope, audience, ttl, now)
			if err != nil {
				return fmt.Errorf("sign the token: %w", err)
			}
			if a.flags.json {
				return a.printJSON(map[string]string{
					"token": signed, "subject": subject, "scope": scope, "audience": audience, "expires": instant(now.Add(ttl)),
				})
			}
			return a.print(signed + "\n")
		}),
	}
	f := cmd.Flags()
	f.StringVar(&state, "state", "", "state folder of the standalone server")
	f.StringVar(&subject, "subject", "", "the subject of the token")
	f.StringVar(&scope, "scope", "", "SMART scopes, separated by spaces, such as 'system/*.rs'")
	f.StringVar(&audience, "audience", "", "the server that accepts the token (default: from the state folder)")
	f.DurationVar(&ttl, "ttl", 5*time.Minute, "lifetime of the token, such as 90s, 10m or 1h")
	require(cmd, "state", "subject", "scope")
	folders(cmd, "state")
	return a.withJSON(cmd)
}

// tokensOf returns the token source of the flags, nil for none, and the base URL.
func tokensOf(flags serverFlags) (bulkclient.TokenSource, string, error) {
	switch {
	case flags.token != "":
		return heldToken(func() (string, error) { return flags.token, nil }), flags.base, nil
	case flags.tokenFile != "":
		return heldToken(func() (string, error) { return readToken(flags.tokenFile) }), flags.base, nil
	case flags.clientID != "":
		source, err := clientTokens(flags)
		return source, flags.base, err
	case flags.state == "":
		return nil, flags.base, nil
	}
	quick, err := readQuickstart(flags.state)
	if err != nil {
		return nil, "", err
	}
	issuer, err := openIssuer(flags.state)
	if err != nil {
		return nil, "", err
	}
	base := flags.base
	if base == "" {
		base = quick.BaseURL
	}
	// The tokens must not leak to another server.
	if !bulkclient.SameOrigin(base, quick.BaseURL) {
		return nil, "", usage("--base is not on the origin of the standalone server, %s", quick.BaseURL)
	}
	return bulkclient.CachedTokens(time.Now, func(context.Context) (string, time.Duration, error) {
		token, err := issuer.Sign(quick.Subject, quick.Scope, quick.BaseURL, signedFor, time.Now())
		if err != nil {
			err = fmt.Errorf("sign a token: %w", err)
		}
		return token, signedFor, err
	}), base, nil
}

// signedFor is the lifetime of a signed token. Conformance B-39 requires a short one.
const signedFor = 5 * time.Minute

// heldToken is a token that this process does not renew. It is read for every request.
type heldToken func() (string, error)

func (read heldToken) Token(_ context.Context, refused string) (string, error) {
	token, err := read()
	if err == nil && token == refused {
		return "", bulkclient.ErrTokenRefused
	}
	return token, err
}

// readToken reads a file with a token that another process renews.
func readToken(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" || strings.ContainsAny(token, " \t\r\n") {
		return "", fmt.Errorf("read the token: %s does not contain exactly one token", file)
	}
	return token, nil
}

func clientTokens(flags serverFlags) (bulkclient.TokenSource, error) {
	if flags.base == "" {
		return nil, usage("--base is required")
	}
	credentials := bulkclient.Credentials{
		Base: flags.base, TokenURL: flags.tokenURL, Scope: flags.scope, InsecureHTTP: flags.insecure, Now: time.Now,
		AnyAudience: flags.anyAudience, ClientID: flags.clientID,
	}
	if flags.clientSecret != "" {
		secret, err := readPrivate(flags.clientSecret)
		if err != nil {
			return nil, err
		}
		credentials.Secret = func() (string, error) { return strings.TrimSpace(string(secret)), nil }
	} else {
		signer, err := readKey(flags.clientKey)
		if err != nil {
			return nil, err
		}
		credentials.Assert = func(endpoint string) (string, error) {
			return signer.SignAssertion(flags.clientID, endpoint, time.Now())
		}
	}
	source, err := bulkclient.NewTokenSource(credentials)
	if err != nil {
		return nil, usageError{fmt.Errorf("--token-url: %w", err)}
	}
	return source, nil
}

// readPrivate reads a file that other users must not be able to access.
func readPrivate(file string) ([]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("read the client's key: %w", err)
	}
	const most = 64 << 10
	if info.Size() > most {
		return nil, fmt.Errorf("%s is not a private key: it is too long", file)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the client's key: %w", err)
	}
	var set struct{ Keys []json.RawMessage }
	if json.Unmarshal(data, &set) == nil && set.Keys != nil {
		return nil, fmt.Errorf("%s is a JSON Web Key Set, the public half for the registration: name the private key", file)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s is accessible to other users: its mode is %#o, want 0600", file, info.Mode().Perm())
	}
	return data, nil
}

// readKey reads a private key.
func readKey(file string) (*token.Signer, error) {
	data, err := readPrivate(file)
	if err != nil {
		return nil, err
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
