package bulkclient

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// assertionType is the client_assertion_type of a JWT (RFC 7523 section 2.2).
const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// Credentials identify a registered client of SMART Backend Services, or a client with a secret (BCDA).
type Credentials struct {
	Base         string // FHIR base URL, whose discovery document names the token endpoint when TokenURL is empty
	TokenURL     string
	Scope        string                                // requested scopes, separated by spaces
	Assert       func(endpoint string) (string, error) // signs an assertion for the token endpoint at the URL; or:
	ClientID     string                                // id for HTTP Basic (client_secret_basic)
	Secret       func() (string, error)                // its secret, instead of Assert
	InsecureHTTP bool                                  // send assertions over plain http to other machines as well
	// AnyAudience sends no resource parameter and takes a token for another server: for token services that refuse
	// the parameter (RFC 8707), or whose tokens name an audience on another origin than the base URL.
	AnyAudience bool
	Now         func() time.Time
}

// Errors of a token source.
var (
	// ErrNoEndpoint: the server has no SMART configuration, or none with a token endpoint.
	ErrNoEndpoint = errors.New("the server announces no token endpoint")
	// ErrForeignEndpoint: a server names a token endpoint on another origin. Credentials.TokenURL allows it. Without this
	// check, a server could name the token endpoint of another service, and would get a token of that service.
	ErrForeignEndpoint = errors.New("the server names a token endpoint on another origin than the base URL")
	// ErrForeignToken: the token is for another server. Credentials.AnyAudience allows it.
	ErrForeignToken = errors.New("the token is for another server than the base URL")
)

// unknownLife is the assumed lifetime of a token without a usable expires_in: that which SMART recommends as the longest.
const unknownLife = 5 * time.Minute

// CachedTokens returns a source that caches the tokens of fetch. It replaces a token after half of its lifetime, because an
// export outlives a token, and at once after the server refuses it (conformance B-39).
func CachedTokens(
	now func() time.Time, fetch func(ctx context.Context) (token string, life time.Duration, err error),
) TokenSource {
	return &cachedTokens{now: now, fetch: fetch}
}

type cachedTokens struct {
	now   func() time.Time
	fetch func(context.Context) (string, time.Duration, error)

	mu    sync.Mutex
	token string
	until time.Time // when the token is replaced
}

func (c *cachedTokens) Token(ctx context.Context, refused string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.token != "" && c.token != refused && c.now().Before(c.until) {
		return c.token, nil
	}
	token, life, err := c.fetch(ctx)
	if err != nil {
		return "", err
	}
	c.token, c.until = token, c.now().Add(life/2)
	return token, nil
}

// credentialTokens fetches tokens. Its methods are not safe for concurrent use.
type credentialTokens struct {
	Credentials
	http *http.Client
}

// NewTokenSource returns a source of tokens for the credentials. It makes no request before the first token is needed.
func NewTokenSource(credentials Credentials) (TokenSource, error) {
	source := &credentialTokens{Credentials: credentials}
	if credentials.TokenURL != "" {
		if err := source.check(credentials.TokenURL); err != nil {
			return nil, err
		}
	}
	source.http = &http.Client{
		Timeout: time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return redirectError("the token endpoint redirects; an assertion is valid for one URL only")
		},
	}
	return CachedTokens(credentials.Now, source.fetch), nil
}

// check refuses a token endpoint to which an assertion would be sent unencrypted.
func (c *credentialTokens) check(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || !isWeb(u) || u.User != nil || u.Fragment != "" {
		return errors.New("the URL of the token endpoint is not an absolute http or https URL")
	}
	if isInsecure(u) && !c.InsecureHTTP {
		return fmt.Errorf("the token endpoint: %w", ErrInsecureHTTP)
	}
	return nil
}

func (c *credentialTokens) fetch(ctx context.Context) (string, time.Duration, error) {
	if c.TokenURL == "" {
		endpoint, err := c.discover(ctx)
		if err != nil {
			return "", 0, fmt.Errorf("find the token endpoint: %w", err)
		}
		c.TokenURL = endpoint
	}
	answer, err := c.request(ctx)
	if err != nil {
		return "", 0, fmt.Errorf("request a token: %w", err)
	}
	if !c.AnyAudience {
		if err := checkAudience(answer.AccessToken, c.Base); err != nil {
			return "", 0, err
		}
	}
	return answer.AccessToken, lifeOf(answer.ExpiresIn), nil
}

type tokenAnswer struct {
	AccessToken string          `json:"access_token"`
	TokenType   string          `json:"token_type"`
	ExpiresIn   json.RawMessage `json:"expires_in"` // seconds
	Error       string          `json:"error"`
	Description string          `json:"error_description"`
}

// lifeOf reads expires_in: a number, also in quotes or with a fraction, as some servers send it. A token without one is
// not refused: the server refuses it when its time is over, and then there is another.
func lifeOf(raw json.RawMessage) time.Duration {
	seconds, err := strconv.ParseFloat(strings.TrimSpace(strings.Trim(string(raw), `"`)), 64)
	if err != nil || !(seconds >= 1) { // also for NaN
		return unknownLife
	}
	return time.Duration(min(seconds, time.Hour.Seconds())) * time.Second
}

// checkAudience refuses a JWT whose audience is the URL of another server: a token service of several servers gives such
// a token when a server misleads the client (RFC 8707). Opaque tokens, and audiences that are not URLs, such as the id of
// a client or a urn, are no evidence and pass: many token services issue those.
func checkAudience(token, base string) error {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil
	}
	var claims struct{ Aud json.RawMessage }
	payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil || json.Unmarshal(payload, &claims) != nil {
		return nil //nolint:nilerr // not a JWT
	}
	var one string
	var all []string
	if json.Unmarshal(claims.Aud, &one) == nil {
		all = []string{one}
	} else if json.Unmarshal(claims.Aud, &all) != nil {
		return nil //nolint:nilerr // no audience
	}
	var others []string
	for _, audience := range all {
		u, err := url.Parse(audience)
		switch {
		case err != nil || !isWeb(u):
		case SameOrigin(audience, base):
			return nil
		default:
			others = append(others, originOf(audience))
		}
	}
	if len(others) > 0 {
		return fmt.Errorf("%w: it is for %s", ErrForeignToken, strings.Join(others, ", "))
	}
	return nil
}

func (c *credentialTokens) request(ctx context.Context) (answer tokenAnswer, err error) {
	form := url.Values{"grant_type": {"client_credentials"}, "scope": {c.Scope}}
	secret := ""
	if c.Secret != nil {
		secret, err = c.Secret()
	} else {
		form.Set("client_assertion_type", assertionType)
		var assertion string
		assertion, err = c.Assert(c.TokenURL)
		form.Set("client_assertion", assertion)
	}
	if err != nil {
		return answer, err
	}
	if !c.AnyAudience {
		form.Set("resource", strings.TrimRight(c.Base, "/"))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.TokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return answer, errors.New("the URL cannot be requested")
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if c.Secret != nil {
		req.SetBasicAuth(url.QueryEscape(c.ClientID), url.QueryEscape(secret)) // RFC 6749 2.3.1
	}
	body, err := c.do(req)
	malformed := json.Unmarshal(body, &answer) != nil
	switch {
	case err != nil && !malformed && answer.Error != "":
		return tokenAnswer{}, fmt.Errorf("%w: %s (%s)", err, printable(answer.Description), printable(answer.Error))
	case err != nil:
		return tokenAnswer{}, err
	case malformed || answer.AccessToken == "" || answer.TokenType != "" && !strings.EqualFold(answer.TokenType, "bearer"):
		return tokenAnswer{}, errors.New("the response has no bearer token")
	}
	return answer, nil
}

// discover reads the token endpoint from the SMART configuration below the FHIR base (conformance B-02).
func (c *credentialTokens) discover(ctx context.Context) (string, error) {
	target := strings.TrimRight(c.Base, "/") + "/.well-known/smart-configuration"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return "", errors.New("the base URL cannot be requested")
	}
	body, err := c.do(req)
	if refused := new(ServerError); errors.As(err, &refused) && refused.Status == http.StatusNotFound {
		return "", fmt.Errorf("%w: %w", ErrNoEndpoint, err)
	}
	if err != nil {
		return "", err
	}
	var document struct {
		TokenEndpoint string `json:"token_endpoint"`
	}
	if json.Unmarshal(body, &document) != nil || document.TokenEndpoint == "" {
		return "", fmt.Errorf("%w: its SMART configuration has no token_endpoint", ErrNoEndpoint)
	}
	if err := c.check(document.TokenEndpoint); err != nil {
		return "", err
	}
	if !SameOrigin(c.Base, document.TokenEndpoint) {
		return "", fmt.Errorf("%w: %s", ErrForeignEndpoint, printable(document.TokenEndpoint))
	}
	return document.TokenEndpoint, nil
}

// do returns the body of a response, together with a ServerError if the status is not 200.
func (c *credentialTokens) do(req *http.Request) ([]byte, error) {
	req.Header.Set("Accept", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, lost(req.Context(), err)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxOutcome))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return nil, lostError{err}
	}
	if resp.StatusCode/100 != 2 {
		return body, &ServerError{Status: resp.StatusCode, retry: resp.Header}
	}
	return body, nil
}
