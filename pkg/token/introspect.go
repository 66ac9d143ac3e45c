package token

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// Introspection configures token introspection (RFC 7662), for an issuer whose tokens are opaque. The issuer's audiences
// and claims apply as they do to signed tokens.
type Introspection struct {
	URL          string // the introspection endpoint, https (http on loopback only)
	ClientID     string // for HTTP Basic (RFC 6749 section 2.3.1)
	ClientSecret string
	// AudienceOptional accepts a response without aud. It is for issuers that never send one, and that return active
	// false to every service except the token's own (RFC 7662 section 4). An aud that is present is still checked.
	AudienceOptional bool
	// CacheFor is how long a response is cached, and so how long a revoked token may still work: at most five minutes;
	// zero means one minute. A response is never cached beyond the token's expiry.
	CacheFor time.Duration
}

const (
	defaultCacheFor = time.Minute
	maxCacheFor     = 5 * time.Minute
	// refusedFor is how long a refusal is cached. It is short because an issuer may return a token before all of its nodes
	// accept it.
	refusedFor = 10 * time.Second
	// cachedTokens is the size of each of the two caches. Accepted and refused tokens have a cache each, so that a flood of
	// invented tokens does not evict good ones.
	cachedTokens = 4096
)

// Limits of introspection. A flood of invented tokens must neither overload the issuer nor lock out tokens that were
// accepted before. Accepted tokens have separate slots and no rate limit: each is introspected once per CacheFor.
const (
	newTokenRate    = 50  // introspections a second of tokens that were not accepted before
	newTokenBurst   = 200 // at once, such as after a start
	introspectSlots = 16  // concurrent introspections of new tokens, and the same number of accepted ones
	// introspectTimeout bounds one introspection, the wait for a slot included.
	introspectTimeout = 5 * time.Second

	maxResponse = 64 << 10 // bytes
)

// check refuses a configuration that cannot work or would send tokens in plaintext.
func (i Introspection) check() error {
	problems := []error{checkURL("introspection URL", i.URL)}
	if i.ClientID == "" || i.ClientSecret == "" {
		problems = append(problems, errors.New("introspection: needs a client id and a client secret"))
	}
	if i.CacheFor < 0 || i.CacheFor > maxCacheFor {
		problems = append(problems,
			fmt.Errorf("introspection: cache time %s is not between 0 and %s", i.CacheFor, maxCacheFor))
	}
	return errors.Join(problems...)
}

// fingerprint identifies a token in the caches, which hold no tokens.
type fingerprint = [sha256.Size]byte

// verdict is the result of an introspection.
type verdict struct {
	claims    claims
	principal Principal
	refusal   error     // an ErrInvalid; nil for a good token
	until     time.Time // when the token has to be introspected again
}

// introspector introspects tokens and caches the verdicts.
type introspector struct {
	Introspection
	issuer  *issuer
	client  *http.Client
	now     func() time.Time
	fetches *fetches
	flight  singleflight.Group // by fingerprint

	newTokens          *rate.Limiter
	newSlots, oldSlots *semaphore.Weighted
	accepted           *lru.Cache[fingerprint, verdict] // expired verdicts too: their tokens are not new
	refused            *lru.Cache[fingerprint, verdict]
}

func newIntrospector(
	cfg Introspection, base *http.Client, iss *issuer, now func() time.Time, fetches *fetches,
) (*introspector, error) {
	cfg.CacheFor = cmp.Or(cfg.CacheFor, defaultCacheFor)
	// A redirect would send the token to another place.
	client := clientWith(base, func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse })
	accepted, err1 := lru.New[fingerprint, verdict](cachedTokens)
	refused, err2 := lru.New[fingerprint, verdict](cachedTokens)
	return &introspector{
		Introspection: cfg, issuer: iss, client: client, now: now, fetches: fetches,
		newTokens: rate.NewLimiter(newTokenRate, newTokenBurst),
		newSlots:  semaphore.NewWeighted(introspectSlots), oldSlots: semaphore.NewWeighted(introspectSlots),
		accepted: accepted, refused: refused,
	}, errors.Join(err1, err2)
}

// applies reports whether a token is introspected. A token in the form of a JWS or a JWE is introspected only when it
// names this issuer and the issuer publishes no keys. So no issuer sees the tokens of another, and a forged token that
// fails against the keys is not introspected.
func (i *introspector) applies(raw string) bool {
	const signed, encrypted = 3, 5 // parts of the compact forms (RFC 7515 and 7516 section 7.1)
	parts := strings.Split(raw, ".")
	if len(parts) != signed && len(parts) != encrypted || !beginsObject(parts[0]) {
		return true
	}
	if i.issuer.keys != nil || len(parts) != signed {
		return false
	}
	payload, err := decodeSegment(parts[1])
	if err != nil {
		return false
	}
	all, err := readObject(payload)
	if err != nil {
		return false
	}
	name, ok := text(all["iss"])
	return ok && name == i.issuer.Name
}

// beginsObject reports whether a segment is base64 of the beginning of a JSON object with a member, as every header is. It
// is lenient, so that a malformed header still counts as one.
func beginsObject(segment string) bool {
	const enough = 64                                                                     // characters, a multiple of four
	decoded, _ := base64.RawURLEncoding.DecodeString(segment[:min(len(segment), enough)]) // the bytes before an error are used
	inside, found := bytes.CutPrefix(bytes.TrimSpace(decoded), []byte("{"))
	return found && bytes.HasPrefix(bytes.TrimSpace(inside), []byte(`"`))
}

// tokenForm is the syntax of a bearer token (RFC 6750 section 2.1).
var tokenForm = regexp.MustCompile(`^[A-Za-z0-9._~+/-]+=*$`)

// find returns the verdict on a token, ErrInvalid when it is refused, or export.ErrUnavailable when the issuer cannot be
// reached. Above the limits the error is export.ErrUnavailable too: the token may be good, and a client whose good token
// is refused as invalid fetches another one, which adds load.
func (i *introspector) find(ctx context.Context, raw string) (verdict, error) {
	if len(raw) > maxToken || !tokenForm.MatchString(raw) {
		return verdict{}, invalid(RuleMalformed, "too long, or has characters that no token has")
	}
	key := sha256.Sum256([]byte(raw))
	found, ok := i.cached(key, i.now())
	if !ok {
		var err error
		found, err = awaitFetch[verdict](ctx, startFetch(i.fetches, &i.flight, string(key[:]), introspectTimeout,
			func(ctx context.Context) (verdict, error) { return i.introspect(ctx, key, raw) }))
		if err != nil {
			return verdict{}, err
		}
	}
	return found, found.refusal
}

func (i *introspector) cached(key fingerprint, now time.Time) (verdict, bool) {
	found, ok := i.accepted.Get(key)
	if !ok || !now.Before(found.until) {
		found, ok = i.refused.Get(key)
	}
	return found, ok && now.Before(found.until)
}

// introspect gets the verdict on a token from the issuer, once a slot is free, and caches it.
func (i *introspector) introspect(ctx context.Context, key fingerprint, raw string) (verdict, error) {
	now := i.now()
	if found, ok := i.cached(key, now); ok { // cached since the caller checked
		return found, nil
	}
	slots := i.oldSlots
	if !i.accepted.Contains(key) {
		if !i.newTokens.AllowN(now, 1) {
			return verdict{}, fmt.Errorf("%w: too many unknown tokens", export.ErrUnavailable)
		}
		slots = i.newSlots
	}
	found, err := i.ask(ctx, slots, raw)
	if err != nil {
		return verdict{}, fmt.Errorf("%w: introspection by issuer %q: %w", export.ErrUnavailable, i.issuer.Name, err)
	}
	if found.refusal != nil {
		found.until = now.Add(refusedFor)
		i.accepted.Remove(key)
		i.refused.Add(key, found)
		return found, nil
	}
	found.until = now.Add(i.CacheFor)
	if end := found.claims.expires; end.Before(found.until) {
		found.until = end
	}
	i.refused.Remove(key)
	i.accepted.Add(key, found)
	return found, nil
}

// ask sends a token to the endpoint (RFC 7662 section 2.1). Every status but 200 is an error, 401 too: it is about our own
// credentials.
func (i *introspector) ask(ctx context.Context, slots *semaphore.Weighted, raw string) (verdict, error) {
	if err := slots.Acquire(ctx, 1); err != nil {
		return verdict{}, fmt.Errorf("wait for a slot: %w", err)
	}
	defer slots.Release(1)
	form := url.Values{"token": {raw}, "token_type_hint": {"access_token"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, i.URL, strings.NewReader(form.Encode()))
	if err != nil {
		return verdict{}, withoutURL(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	// RFC 6749 section 2.3.1 requires escaping.
	req.SetBasicAuth(url.QueryEscape(i.ClientID), url.QueryEscape(i.ClientSecret))
	data, _, err := do(i.client, req, maxResponse)
	if err != nil {
		return verdict{}, err
	}
	return i.judge(data)
}

// judge reads an introspection response (RFC 7662 section 2.2) as strictly as a signed token. It refuses a token that is
// not active or whose claims do not fit; a malformed response is an error. username is for display only and is ignored.
func (i *introspector) judge(data []byte) (verdict, error) {
	all, err := readObject(data)
	if err != nil {
		return verdict{}, errors.New("response is not one JSON object with distinct members")
	}
	switch string(all["active"]) {
	case "true":
	case "false":
		return verdict{refusal: invalid(RuleInactive, "not active")}, nil
	default:
		return verdict{}, errors.New("response has no active of true or false")
	}
	c, err := i.readClaims(all)
	if err != nil {
		return verdict{refusal: err}, nil
	}
	principal, err := i.issuer.principal(c)
	if err != nil {
		return verdict{refusal: err}, nil
	}
	c.all = nil // it may be large and is no longer needed
	return verdict{claims: c, principal: principal}, nil
}

func (i *introspector) readClaims(all members) (claims, error) {
	c := claims{issuer: i.issuer.Name, all: all}
	if raw, present := all["iss"]; present {
		if name, ok := text(raw); !ok || name != c.issuer {
			return c, invalid(RuleIssuer, "iss is another issuer")
		}
	}
	if raw, present := all["token_type"]; present {
		if kind, ok := text(raw); !ok || !strings.EqualFold(kind, "Bearer") {
			return c, invalid(RuleKind, "token_type is not Bearer")
		}
	}
	raw, present := all["aud"]
	if present {
		var ok bool
		if c.audiences, ok = texts(raw); !ok {
			return c, invalid(RuleMalformed, "aud is neither a string nor an array of strings")
		}
	}
	if (present || !i.AudienceOptional) && !intersect(c.audiences, i.issuer.Audiences) {
		return c, invalid(RuleAudience, "issued for another audience")
	}
	return c, c.readTimes()
}
