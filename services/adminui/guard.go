package adminui

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	// sessionCookie holds a random name of the browser. It says nothing and opens nothing: it only ties forms to the
	// browser that they were made for.
	sessionCookie = "sluice-operator"
	// formLife is how long after it was shown a form may be sent.
	formLife = time.Hour
	// formBytes bounds what a form may hold.
	formBytes = 16 << 10
)

// guard is what every request has to pass, and what every form has to bring along.
type guard struct {
	hosts  []string // names of this server besides localhost and addresses
	origin *http.CrossOriginProtection
	secret [32]byte // of this process: forms that another process made are not taken
	now    func() time.Time
}

func newGuard(hosts []string, now func() time.Time) *guard {
	g := &guard{origin: http.NewCrossOriginProtection(), now: now}
	for _, host := range hosts {
		g.hosts = append(g.hosts, strings.ToLower(host))
	}
	_, _ = rand.Read(g.secret[:]) // it never fails
	return g
}

// knows reports whether a request's Host is a name of this server. A site that has its own name resolve to this server's
// address (DNS rebinding) could otherwise pass its pages off as ours. An address cannot be rebound.
func (g *guard) knows(host string) bool {
	name := host
	if bare, _, err := net.SplitHostPort(host); err == nil {
		name = bare
	}
	name = strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(name, "["), "]"))
	if _, err := netip.ParseAddr(name); err == nil {
		return true
	}
	return name == "localhost" || slices.Contains(g.hosts, name)
}

// secure sets the headers of every answer: nothing from elsewhere, nothing inline, nowhere in a frame, kept by nobody.
func secure(header http.Header) {
	for name, value := range map[string]string{
		"Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; " +
			"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
		"X-Content-Type-Options":       "nosniff",
		"X-Frame-Options":              "DENY",
		"Referrer-Policy":              "same-origin", // with none at all, a form's Origin would be "null"
		"Cross-Origin-Opener-Policy":   "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin",
		"Permissions-Policy":           "camera=(), geolocation=(), microphone=()",
		"Cache-Control":                "no-store",
	} {
		header.Set(name, value)
	}
}

// session returns the name of the browser, and gives it one if it has none.
func session(w http.ResponseWriter, r *http.Request) string {
	if cookie, err := r.Cookie(sessionCookie); err == nil && cookie.Value != "" {
		return cookie.Value
	}
	name := rand.Text()
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // it is Secure wherever there is TLS
		Name: sessionCookie, Value: name, Path: Path, HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteStrictMode,
	})
	return name
}

// token returns what a form for the step (the path that it is sent to) has to hold.
func (g *guard) token(session, step string) string {
	return g.tokenOf(session, step, g.now().Unix())
}

func (g *guard) tokenOf(session, step string, made int64) string {
	stamp := binary.BigEndian.AppendUint64(nil, uint64(made)) //nolint:gosec // the clock is past 1970
	mac := hmac.New(sha256.New, g.secret[:])
	mac.Write(stamp)
	mac.Write([]byte(session + "\x00" + step))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(stamp))
}

// Reasons to refuse a form, fit to be read by who sent it.
var (
	errForeign = errors.New("this form was not sent from the operator's page")
	errStale   = errors.New("this form is too old, or the server was started anew meanwhile: go back and open it again")
)

// admits reports whether a form may do what it asks: it comes from a page of ours, of this browser and for this very step.
func (g *guard) admits(r *http.Request) error {
	if err := g.origin.Check(r); err != nil {
		return errForeign
	}
	cookie, err := r.Cookie(sessionCookie)
	if err != nil || cookie.Value == "" {
		return errForeign
	}
	if err := r.ParseForm(); err != nil {
		return errForeign
	}
	given := r.PostForm.Get("token")
	raw, err := base64.RawURLEncoding.DecodeString(given)
	if err != nil || len(raw) != 8+sha256.Size {
		return errForeign
	}
	made := int64(binary.BigEndian.Uint64(raw)) //nolint:gosec // any number will do: it is compared as a part of the token
	if !hmac.Equal([]byte(given), []byte(g.tokenOf(cookie.Value, r.URL.Path, made))) {
		return errStale
	}
	if age := g.now().Sub(time.Unix(made, 0)); age < 0 || age > formLife {
		return errStale
	}
	return nil
}
