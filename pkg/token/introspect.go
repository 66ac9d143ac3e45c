package token

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// Introspection is how the tokens of an issuer are asked about that carry nothing to read (RFC 7662). The issuer's
// audiences and its claims count as they do for signed tokens.
type Introspection struct {
	URL          string // the introspection endpoint, https (http on loopback only)
	ClientID     string // as whom to ask, by HTTP Basic (RFC 6749 section 2.3.1)
	ClientSecret string
	// AudienceOptional accepts an answer without aud. It is for issuers that never give one and answer that a token is
	// not active to everybody but those it is meant for (RFC 7662 section 4). An aud that is there counts all the same.
	AudienceOptional bool
	// CacheFor is how long an answer may be used again, so that a revoked token works for no longer; at most five
	// minutes, zero means one. No token is used beyond its own end.
	CacheFor time.Duration
}

const (
	defaultCacheFor = time.Minute
	maxCacheFor     = 5 * time.Minute
	// refusedFor is how long it is remembered that a token is no good. It is short because an issuer that hands out
	// tokens before all its nodes know them says so of a good one.
	refusedFor = 10 * time.Second
	// mostAnswers is how many answers of each kind are held. The two kinds have their own room, or a flood of made-up
	// tokens would push out those that work.
	mostAnswers = 4096
)

// What introspection may ask of an issuer. A flood of made-up tokens must not become one on the issuer; and it must not
// shut out those whose tokens have worked before, so these have slots of their own, and no rate: they ask once in CacheFor.
const (
	strangersRate  = 50  // questions a second about tokens that never worked here
	strangersBurst = 200 // at once, such as after a start
	slots          = 16  // questions under way, of each of the two
	// introspectTimeout bounds one question, the wait for a slot included.
	introspectTimeout = 5 * time.Second
)

// check refuses what cannot work, or would hand tokens to whoever listens.
func (i Introspection) check() error {
	problems := []error{checkURL("introspection URL", i.URL)}
	if i.ClientID == "" || i.ClientSecret == "" {
		problems = append(problems, errors.New("introspection: wants a client id and a client secret"))
	}
	if i.CacheFor < 0 || i.CacheFor > maxCacheFor {
		problems = append(problems,
			fmt.Errorf("introspection: answers kept for %s, not between 0 and %s", i.CacheFor, maxCacheFor))
	}
	return errors.Join(problems...)
}

// fingerprint stands for a token wherever one is held.
type fingerprint = [sha256.Size]byte

// verdict is what is known of a token.
type verdict struct {
	claims    claims
	principal Principal
	refusal   error     // an ErrInvalid; nil for a good token
	until     time.Time // when it has to be asked about again
}

// inquiry is a question under way. What it found is there once done is closed.
type inquiry struct {
	done    chan struct{}
	verdict verdict
	err     error // the issuer did not say
}

// introspector asks an issuer about tokens and remembers what it said. Whoever brings a token that is being asked about
// waits for that answer.
type introspector struct {
	issuer           *issuer
	endpoint         endpoint
	audienceOptional bool
	cacheFor         time.Duration
	now              func() time.Time
	life             context.Context // ends with the Verifier: a question outlives the request that raised it
	fetches          *sync.WaitGroup

	rate             *rate.Limiter // of strangers
	strangers, known chan struct{} // slots

	mu       sync.Mutex
	closed   bool
	accepted *simplelru.LRU[fingerprint, verdict] // also stale ones: they tell who is no stranger
	refused  *simplelru.LRU[fingerprint, verdict]
	running  map[fingerprint]*inquiry
}

// newIntrospector leaves out what it shares with the Verifier: now, life and fetches.
func newIntrospector(cfg Introspection, client *http.Client, iss *issuer) *introspector {
	i := &introspector{
		issuer:           iss,
		endpoint:         newEndpoint(cfg, client),
		audienceOptional: cfg.AudienceOptional,
		cacheFor:         cfg.CacheFor,
		rate:             rate.NewLimiter(strangersRate, strangersBurst),
		strangers:        make(chan struct{}, slots),
		known:            make(chan struct{}, slots),
		accepted:         newAnswers(),
		refused:          newAnswers(),
		running:          make(map[fingerprint]*inquiry),
	}
	if i.cacheFor == 0 {
		i.cacheFor = defaultCacheFor
	}
	return i
}

func newAnswers() *simplelru.LRU[fingerprint, verdict] {
	answers, err := simplelru.NewLRU[fingerprint, verdict](mostAnswers, nil)
	if err != nil {
		panic(err) // only for a size that is not positive
	}
	return answers
}

// takes reports whether a token is one to ask about. What looks like a signed or an encrypted token goes by its
// signature: it is asked about only when it names this issuer and the issuer publishes no keys. So no issuer is shown
// another's token, and no forgery that the keys refuse gets a second opinion.
func (i *introspector) takes(raw string) bool {
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
	return ok && name == i.issuer.name
}

// beginsObject reports whether a segment is base64 of what begins like a JSON object with a member, as every header does.
// It is lenient, so that a header that parse refuses is one here too.
func beginsObject(segment string) bool {
	const enough = 64                                                                     // characters, a multiple of four
	decoded, _ := base64.RawURLEncoding.DecodeString(segment[:min(len(segment), enough)]) // what precedes an error counts
	inside, found := bytes.CutPrefix(bytes.TrimSpace(decoded), []byte("{"))
	return found && bytes.HasPrefix(bytes.TrimSpace(inside), []byte(`"`))
}

// tokenForm is what RFC 6750 section 2.1 allows a bearer token to be.
var tokenForm = regexp.MustCompile(`^[A-Za-z0-9._~+/-]+=*$`)

// find returns what is known of a token, ErrInvalid when it is no good, or export.ErrUnavailable when the issuer cannot
// be asked. Beyond the limits the answer is export.ErrUnavailable too: nobody knows whether the token is good, and a
// client whose good token were called invalid would throw it away and fetch another one, which is more load and no help.
func (i *introspector) find(ctx context.Context, raw string) (verdict, error) {
	if len(raw) > maxToken || !tokenForm.MatchString(raw) {
		return verdict{}, invalid("too long, or not of a token's characters")
	}
	key := sha256.Sum256([]byte(raw))
	i.mu.Lock()
	now := i.now()
	held, there := i.held(key, now)
	if there {
		i.mu.Unlock()
		return held, held.refusal
	}
	asked, err := i.ask(key, raw, now)
	i.mu.Unlock()
	if err != nil {
		return verdict{}, err
	}
	select {
	case <-asked.done:
	case <-ctx.Done():
		return verdict{}, fmt.Errorf("%w: wait for introspection: %w", export.ErrUnavailable, ctx.Err())
	}
	if asked.err != nil {
		return verdict{}, fmt.Errorf("%w: introspection by issuer %q: %w", export.ErrUnavailable, i.issuer.name, asked.err)
	}
	return asked.verdict, asked.verdict.refusal
}

// held returns an answer that may still be used. The lock is held.
func (i *introspector) held(key fingerprint, now time.Time) (verdict, bool) {
	for _, answers := range []*simplelru.LRU[fingerprint, verdict]{i.accepted, i.refused} {
		if v, there := answers.Get(key); there && now.Before(v.until) {
			return v, true
		}
	}
	return verdict{}, false
}

// ask starts a question about a token, unless one is under way. The lock is held.
func (i *introspector) ask(key fingerprint, raw string, now time.Time) (*inquiry, error) {
	if asked, there := i.running[key]; there {
		return asked, nil
	}
	if i.closed {
		return nil, fmt.Errorf("%w: verifier is closed", export.ErrUnavailable)
	}
	slot := i.known
	if !i.accepted.Contains(key) {
		if !i.rate.AllowN(now, 1) {
			return nil, fmt.Errorf("%w: too many unknown tokens", export.ErrUnavailable)
		}
		slot = i.strangers
	}
	asked := &inquiry{done: make(chan struct{})}
	i.running[key] = asked
	i.fetches.Go(func() {
		found, err := i.fetch(raw, slot)
		i.mu.Lock()
		defer i.mu.Unlock()
		if err == nil {
			i.keep(key, found, now)
		}
		asked.verdict, asked.err = found, err
		delete(i.running, key)
		close(asked.done)
	})
	return asked, nil
}

// keep stores the answer to a question of that time. The lock is held.
func (i *introspector) keep(key fingerprint, found verdict, asked time.Time) {
	if found.refusal != nil {
		found.until = asked.Add(refusedFor)
		i.accepted.Remove(key)
		i.refused.Add(key, found)
		return
	}
	found.until = asked.Add(i.cacheFor)
	if end := found.claims.expires; end.Before(found.until) {
		found.until = end
	}
	i.refused.Remove(key)
	i.accepted.Add(key, found)
}

// fetch asks the issuer, once a slot is free.
func (i *introspector) fetch(raw string, slot chan struct{}) (verdict, error) {
	ctx, cancel := context.WithTimeout(i.life, introspectTimeout)
	defer cancel()
	select {
	case slot <- struct{}{}:
		defer func() { <-slot }()
	case <-ctx.Done():
		return verdict{}, fmt.Errorf("wait for a slot: %w", ctx.Err())
	}
	data, err := i.endpoint.ask(ctx, raw)
	if err != nil {
		return verdict{}, err
	}
	c, err := readAnswer(data, i.issuer.name)
	if errors.Is(err, ErrInvalid) {
		return verdict{refusal: err}, nil
	}
	if err != nil {
		return verdict{}, err
	}
	return i.judge(c), nil
}

// judge applies the issuer's rules to the claims of an active token.
func (i *introspector) judge(c claims) verdict {
	if !(i.audienceOptional && c.audiences == nil) && !intersect(c.audiences, i.issuer.audiences) {
		return verdict{refusal: invalid("made for another audience")}
	}
	principal, err := i.issuer.principal(c)
	if err != nil {
		return verdict{refusal: err}
	}
	c.all = nil // an answer may be large, and has been read
	return verdict{claims: c, principal: principal}
}

func (i *introspector) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.closed = true
}
