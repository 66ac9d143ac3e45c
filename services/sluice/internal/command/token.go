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
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
	"github.com/sluice-fhir/sluice/pkg/token/development"
)

// quickstart is what a standalone server writes into its state folder as soon as it serves.
type quickstart struct {
	BaseURL string `json:"base_url"`
	Subject string `json:"subject"`
	Scope   string `json:"scope"`
}

// readQuickstart tells people without a running server what they miss.
func readQuickstart(state string) (quickstart, error) {
	var quick quickstart
	name := filepath.Join(state, "quickstart.json")
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return quick, fmt.Errorf("%s is missing: has a standalone server served with --state %s?", name, state)
	}
	if err != nil {
		return quick, fmt.Errorf("read the state folder: %w", err)
	}
	if err := json.Unmarshal(text, &quick); err != nil {
		return quick, fmt.Errorf("read %s: %w", name, err)
	}
	return quick, nil
}

// openIssuer opens the development issuer of a standalone server. It makes none: a new issuer's tokens would be
// refused by every server.
func openIssuer(state string) (*development.Issuer, error) {
	dir := filepath.Join(state, "issuer")
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("%s has no development issuer: is it that of a standalone server? %w", state, err)
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
		Short: "Sign a token of the development issuer",
		Long: `Token signs a token with the development issuer of a standalone server and prints it, and nothing else, on
standard output. It is for development: no other server accepts such a token.`,
		Args: cobra.NoArgs,
		RunE: a.run(func(context.Context, []string) error {
			if subject == "" || scope == "" {
				return usage("--subject and --scope must not be empty")
			}
			if ttl <= 0 {
				return usage("--ttl must be longer than nothing")
			}
			if audience == "" {
				quick, err := readQuickstart(state)
				if err != nil {
					return fmt.Errorf("find the audience (or name it with --audience): %w", err)
				}
				audience = quick.BaseURL
			}
			issuer, err := openIssuer(state)
			if err != nil {
				return err
			}
			signed, err := issuer.Sign(subject, scope, audience, ttl, a.now())
			if err != nil {
				return fmt.Errorf("sign the token: %w", err)
			}
			return a.print(signed + "\n")
		}),
	}
	f := cmd.Flags()
	f.StringVar(&state, "state", "", "state folder of the standalone server")
	f.StringVar(&subject, "subject", "", "the user that the token stands for")
	f.StringVar(&scope, "scope", "", "SMART scopes, separated by blanks, as 'system/*.rs'")
	f.StringVar(&audience, "audience", "", "the server that the token is for (default: the one of the state folder)")
	f.DurationVar(&ttl, "ttl", 5*time.Minute, "how long the token is good")
	for _, name := range []string{"state", "subject", "scope"} {
		require(cmd, name)
	}
	return cmd
}

// tokens returns the source of tokens that the flags name, nil for none, and the base URL.
func (a *app) tokens(flags exportFlags) (bulkclient.TokenSource, string, error) {
	switch {
	case flags.token != "":
		return given(flags.token), flags.base, nil
	case flags.tokenFile != "":
		return fromFile(flags.tokenFile), flags.base, nil
	case flags.clientID != "":
		source, err := a.clientTokens(flags)
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
	// These tokens open one server. To another they would only be given away.
	if !bulkclient.SameOrigin(base, quick.BaseURL) {
		return nil, "", usage("--base is not on the origin of the server of --state, %s", quick.BaseURL)
	}
	sign := func() (string, error) {
		return issuer.Sign(quick.Subject, quick.Scope, quick.BaseURL, signedFor, a.now())
	}
	return &signing{sign: sign, now: a.now}, base, nil
}

// given is a token that nothing renews.
type given string

func (g given) Token(_ context.Context, refused string) (string, error) {
	if refused == string(g) {
		return "", bulkclient.ErrTokenRefused
	}
	return string(g), nil
}

// fromFile is a file that somebody else keeps filled with a good token. It is read for every request: a renewed token
// counts at once.
type fromFile string

func (f fromFile) Token(_ context.Context, refused string) (string, error) {
	text, err := os.ReadFile(string(f))
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" || strings.ContainsAny(token, " \t\r\n") {
		return "", fmt.Errorf("read the token: %s does not hold one token", string(f))
	}
	if token == refused {
		return "", bulkclient.ErrTokenRefused
	}
	return token, nil
}

// signedFor is how long a token of ours is good: short, as conformance B-39 wants it.
const signedFor = 5 * time.Minute

// signing signs tokens as they are needed: an export outlives any of them.
type signing struct {
	sign func() (string, error)
	now  func() time.Time

	mu    sync.Mutex
	token string
	until time.Time // when the next one is due, well before this one ends
}

func (s *signing) Token(_ context.Context, refused string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token != "" && s.token != refused && s.now().Before(s.until) {
		return s.token, nil
	}
	token, err := s.sign()
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	s.token, s.until = token, s.now().Add(signedFor/2)
	return token, nil
}
