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
	// sessionCookie holds a random id of the browser. It grants no access. It binds a form to the browser that received it.
	sessionCookie = "sluice-operator"
	formLife      = time.Hour
	formBytes     = 16 << 10
)

// guard checks the Host of requests and the token of forms.
type guard struct {
	hosts  []string // accepted in addition to localhost and addresses
	origin *http.CrossOriginProtection
	secret [32]byte // of this process: forms of other processes are refused
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

// accepts reports whether a request's Host is a name of this server. It protects against DNS rebinding, where
// another site's name resolves to this server's address. An address cannot be rebound.
func (g *guard) accepts(host string) bool {
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

// setHeaders sets the security headers of every response: no foreign or inline content, no framing, no caching.
func setHeaders(header http.Header) {
	for name, value := range map[string]string{
		"Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; " +
			"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
		"X-Content-Type-Options":       "nosniff",
		"X-Frame-Options":              "DENY",
		"Referrer-Policy":              "same-origin", // with no-referrer, a form's Origin would be "null"
		"Cross-Origin-Opener-Policy":   "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin",
		"Permissions-Policy":           "camera=(), geolocation=(), microphone=()",
		"Cache-Control":                "no-store",
	} {
		header.Set(name, value)
	}
}

// session returns the browser's id from its cookie, or sets a new one.
func session(w http.ResponseWriter, r *http.Request) string {
	if cookie, err := r.Cookie(sessionCookie); err == nil && cookie.Value != "" {
		return cookie.Value
	}
	name := rand.Text()
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // Secure is set on TLS connections
		Name: sessionCookie, Value: name, Path: Path, HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteStrictMode,
	})
	return name
}

// token returns the token of a form that posts to the path.
func (g *guard) token(session, path string) string { return g.tokenOf(session, path, g.now().Unix()) }

func (g *guard) tokenOf(session, path string, made int64) string {
	stamp := binary.BigEndian.AppendUint64(nil, uint64(made)) //nolint:gosec // the clock is past 1970
	mac := hmac.New(sha256.New, g.secret[:])
	mac.Write(stamp)
	mac.Write([]byte(session + "\x00" + path))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(stamp))
}

// Reasons to refuse a form. The page shows them.
var (
	errForeign = errors.New("this form was not sent from the operator's page")
	errStale   = errors.New("this form is too old, or the server was restarted: go back and open it again")
)

// checkForm returns an error unless the form was sent from this page, by this browser and for this action.
func (g *guard) checkForm(r *http.Request) error {
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
	made := int64(binary.BigEndian.Uint64(raw)) //nolint:gosec // any number is valid: the comparison covers it
	if !hmac.Equal([]byte(given), []byte(g.tokenOf(cookie.Value, r.URL.Path, made))) {
		return errStale
	}
	if age := g.now().Sub(time.Unix(made, 0)); age < 0 || age > formLife {
		return errStale
	}
	return nil
}
