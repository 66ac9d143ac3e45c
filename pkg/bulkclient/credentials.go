package bulkclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// assertionType is the client_assertion_type of a JWT (RFC 7523 section 2.2).
const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// Credentials are how a registered client gets its tokens (SMART Backend Services).
type Credentials struct {
	Base     string // FHIR base URL, whose discovery document names the token endpoint when TokenURL is empty
	TokenURL string
	Scope    string                                // scopes to ask for, separated by blanks
	Assert   func(endpoint string) (string, error) // makes an assertion for the token endpoint at the URL
	Insecure bool                                  // send assertions over plain http to other machines, too
	Now      func() time.Time
}

// credentialTokens fetches tokens as they are needed: an export outlives any of them.
type credentialTokens struct {
	Credentials
	http *http.Client

	mu    sync.Mutex
	token string
	until time.Time // when the next one is due, well before this one ends
}

// NewCredentialTokens returns a source of tokens for the credentials. Nothing is asked before the first token is needed.
func NewCredentialTokens(credentials Credentials) (TokenSource, error) {
	source := &credentialTokens{Credentials: credentials}
	if credentials.TokenURL != "" {
		if err := source.check(credentials.TokenURL); err != nil {
			return nil, err
		}
	}
	source.http = &http.Client{
		Timeout: time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return redirectError("the token service redirects: an assertion is for one URL alone")
		},
	}
	return source, nil
}

// check refuses a token endpoint to which an assertion would travel in the open.
func (c *credentialTokens) check(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || !isWeb(u) || u.User != nil || u.Fragment != "" {
		return errors.New("the URL of the token endpoint is not an absolute http or https URL")
	}
	if strings.EqualFold(u.Scheme, "http") && !isLoopback(u.Hostname()) && !c.Insecure {
		return fmt.Errorf("the token endpoint: %w", ErrInsecure)
	}
	return nil
}

// Token implements TokenSource.
func (c *credentialTokens) Token(ctx context.Context, refused string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.token != "" && c.token != refused && c.Now().Before(c.until) {
		return c.token, nil
	}
	if c.TokenURL == "" {
		endpoint, err := c.discover(ctx)
		if err != nil {
			return "", fmt.Errorf("find the token service: %w", err)
		}
		c.TokenURL = endpoint
	}
	given, err := c.fetch(ctx)
	if err != nil {
		return "", fmt.Errorf("ask the token service: %w", err)
	}
	life := time.Duration(min(max(given.ExpiresIn, 0), int64(time.Hour/time.Second))) * time.Second
	c.token, c.until = given.AccessToken, c.Now().Add(life/2)
	return c.token, nil
}

// grant is the answer of a token service: a token, or why there is none (RFC 6749 section 5).
type grant struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int64  `json:"expires_in"` // seconds
	Error       string `json:"error"`
	Description string `json:"error_description"`
}

func (c *credentialTokens) fetch(ctx context.Context) (given grant, err error) {
	assertion, err := c.Assert(c.TokenURL)
	if err != nil {
		return given, err
	}
	form := url.Values{
		"grant_type": {"client_credentials"}, "scope": {c.Scope}, "client_assertion_type": {assertionType},
		"client_assertion": {assertion},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.TokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return given, errors.New("the URL cannot be requested")
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	body, err := c.ask(req)
	if refused := new(ServerError); errors.As(err, &refused) {
		if json.Unmarshal(body, &given) == nil && given.Error != "" {
			err = fmt.Errorf("%w: %s (%s)", err, printable(given.Description), printable(given.Error))
		}
		return grant{}, err
	}
	if err != nil {
		return grant{}, err
	}
	if json.Unmarshal(body, &given) != nil || given.AccessToken == "" || !strings.EqualFold(given.TokenType, "bearer") {
		return grant{}, errors.New("the answer holds no bearer token")
	}
	return given, nil
}

// discover reads the token endpoint from the SMART configuration below the FHIR base (B-02).
func (c *credentialTokens) discover(ctx context.Context) (string, error) {
	target := strings.TrimRight(c.Base, "/") + "/.well-known/smart-configuration"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return "", errors.New("the base URL cannot be requested")
	}
	body, err := c.ask(req)
	if err != nil {
		return "", err
	}
	var document struct {
		TokenEndpoint string `json:"token_endpoint"`
	}
	if json.Unmarshal(body, &document) != nil || document.TokenEndpoint == "" {
		return "", errors.New("the server's SMART configuration names no token endpoint")
	}
	if strings.HasPrefix(c.Base, "https:") && !strings.HasPrefix(document.TokenEndpoint, "https:") {
		return "", errors.New("the server is https, but the token endpoint that it names is not")
	}
	return document.TokenEndpoint, c.check(document.TokenEndpoint)
}

// ask returns the body of an answer, and a ServerError beside it when the status is not 200.
func (c *credentialTokens) ask(req *http.Request) ([]byte, error) {
	req.Header.Set("Accept", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		if req.Context().Err() != nil {
			return nil, context.Cause(req.Context())
		}
		var of *url.Error
		var redirected redirectError
		if errors.As(err, &redirected) {
			return nil, redirected
		}
		if errors.As(err, &of) {
			err = of.Err
		}
		return nil, lostError{err}
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxOutcome))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return nil, lostError{err}
	}
	if resp.StatusCode != http.StatusOK {
		return body, &ServerError{Status: resp.StatusCode, retryAfter: resp.Header.Get("Retry-After")}
	}
	return body, nil
}
