package token

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jws"
)

// maxToken is the size limit of a token, in bytes.
const maxToken = 8 << 10

// members are the members of a JSON object, each as it was written.
type members = map[string]json.RawMessage

// parsed is a token whose signature has not been verified.
type parsed struct {
	header    members
	alg, kid  string
	typ       string // in lower case, without "application/" (RFC 7515 section 4.1.9); "" when absent
	claims    claims
	signed    []byte // header and payload as they were signed
	signature []byte
}

// claims are the claims that Sluice reads.
type claims struct {
	issuer, subject string
	audiences       []string
	expires         time.Time
	notBefore       time.Time // zero when absent
	issuedAt        time.Time // zero when absent
	all             members   // every claim, for issuers whose subject is another claim
}

// parse reads a compact JWS whose typ is one of types or absent. An issuer signs other things with the same key, such as
// logout tokens (RFC 8725 section 3.11). It is stricter than RFC 7515: base64url must be canonical, because otherwise one
// signature has several encodings, and members must be distinct, because otherwise two parsers may see different tokens.
func parse(raw string, types ...string) (parsed, error) {
	if len(raw) > maxToken {
		return parsed{}, invalid(RuleMalformed, "too long")
	}
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return parsed{}, invalid(RuleMalformed, "not a compact JWS")
	}
	var decoded [3][]byte
	for i, part := range parts {
		var err error
		if decoded[i], err = decodeSegment(part); err != nil {
			return parsed{}, invalid(RuleMalformed, "not a compact JWS")
		}
	}
	t := parsed{signed: []byte(raw[:len(parts[0])+1+len(parts[1])]), signature: decoded[2]}
	if err := t.readHeader(decoded[0]); err != nil {
		return parsed{}, err
	}
	if t.typ != "" && !slices.Contains(types, t.typ) {
		return parsed{}, invalid(RuleKind, "typ is not "+strings.Join(types, " or "))
	}
	return t, t.claims.read(decoded[1])
}

// verify checks the signature with a key that fits the algorithm.
func (t *parsed) verify(key crypto.PublicKey) error {
	verifier, err := jws.NewVerifier(jwa.SignatureAlgorithm(t.alg))
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	if verifier.Verify(t.signed, t.signature, key) != nil {
		return invalid(RuleSignature, "signature does not verify") // the library's error may contain the token
	}
	return nil
}

var errSegment = errors.New("not base64url")

func decodeSegment(s string) ([]byte, error) {
	if s == "" || strings.ContainsAny(s, "\r\n") { // the decoder skips line breaks
		return nil, errSegment
	}
	return base64.RawURLEncoding.Strict().DecodeString(s)
}

func (t *parsed) readHeader(data []byte) error {
	header, err := readObject(data)
	if err != nil {
		return invalid(RuleMalformed, "header is not one JSON object with distinct members")
	}
	// crit and b64 change what is signed; with cty, enc or zip the payload is not a set of claims.
	for _, name := range []string{"crit", "b64", "cty", "enc", "zip"} {
		if _, ok := header[name]; ok {
			return invalid(RuleMalformed, "header has "+name)
		}
	}
	t.header = header
	var ok bool
	if t.alg, ok = text(header["alg"]); !ok {
		return invalid(RuleMalformed, "header has no alg")
	}
	if raw, present := header["kid"]; present {
		if t.kid, ok = text(raw); !ok {
			return invalid(RuleMalformed, "kid is not a string, or empty")
		}
	}
	if raw, present := header["typ"]; present {
		typ, ok := text(raw)
		if t.typ = strings.TrimPrefix(strings.ToLower(typ), "application/"); !ok || t.typ == "" {
			return invalid(RuleMalformed, "typ is not a string, or empty")
		}
	}
	return nil
}

func (c *claims) read(data []byte) error {
	payload, err := readObject(data)
	if err != nil {
		return invalid(RuleMalformed, "payload is not one JSON object with distinct members")
	}
	c.all = payload
	var ok bool
	if c.issuer, ok = text(payload["iss"]); !ok {
		return invalid(RuleMalformed, "no iss")
	}
	if c.subject, ok = text(payload["sub"]); !ok {
		return invalid(RuleMalformed, "no sub")
	}
	if c.audiences, ok = texts(payload["aud"]); !ok {
		return invalid(RuleMalformed, "no aud")
	}
	return c.readTimes()
}

// readTimes reads exp, which is required, nbf and iat. Fractions are rounded towards less validity.
func (c *claims) readTimes() (err error) {
	if c.expires, err = instant(c.all, "exp", false); err != nil {
		return err
	}
	if c.expires.IsZero() {
		return invalid(RuleMalformed, "no exp")
	}
	if c.notBefore, err = instant(c.all, "nbf", true); err != nil {
		return err
	}
	c.issuedAt, err = instant(c.all, "iat", true)
	return err
}

// check compares the times with the clock.
func (c *claims) check(now time.Time) error {
	switch {
	case !now.Before(c.expires.Add(skew)):
		return invalid(RuleExpired, "expired")
	case now.Add(skew).Before(c.notBefore):
		return invalid(RuleNotYetValid, "not valid yet")
	case now.Add(skew).Before(c.issuedAt):
		return invalid(RuleNotYetValid, "issued in the future")
	}
	return nil
}

// readObject reads exactly one JSON object in valid UTF-8 without duplicate members. json.Unmarshal would take the last
// of two members and ignore the case of names.
func readObject(data []byte) (members, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return nil, errors.New("not an object")
	}
	members := make(members)
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, err
		}
		key, ok := name.(string)
		if _, twice := members[key]; !ok || twice {
			return nil, errors.New("duplicate member")
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		members[key] = value
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("trailing data")
	}
	return members, nil
}

// text reads a string that is not empty. It refuses control characters and the replacement character: decoding replaces
// malformed escapes by the latter, and two different subjects must never become equal.
func text(raw json.RawMessage) (string, bool) {
	var s string
	if len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, &s) != nil {
		return "", false
	}
	bad := func(r rune) bool { return r == utf8.RuneError || unicode.IsControl(r) }
	return s, s != "" && strings.IndexFunc(s, bad) < 0
}

// texts reads a string or an array of strings, none of them empty.
func texts(raw json.RawMessage) ([]string, bool) {
	if one, ok := text(raw); ok {
		return []string{one}, true
	}
	var elements []json.RawMessage
	if len(raw) == 0 || raw[0] != '[' || json.Unmarshal(raw, &elements) != nil {
		return nil, false
	}
	all := make([]string, 0, len(elements))
	for _, element := range elements {
		one, ok := text(element)
		if !ok {
			return nil, false
		}
		all = append(all, one)
	}
	return all, true
}

// numericDate is a JSON number without a sign whose value big.Rat computes at once: the exponent has at most two digits.
var numericDate = regexp.MustCompile(`^(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?$`)

// The latest NumericDate, in the year 5138, and the longest text of one.
const (
	latestDate  = 99_999_999_999
	longestDate = 64
)

// instant reads a NumericDate, a JSON number with or without a fraction (RFC 7519 section 2), or returns the zero time when
// it is absent. The fraction is rounded up or down to a second. Negative numbers and those after latestDate are refused.
func instant(payload members, name string, up bool) (time.Time, error) {
	raw, present := payload[name]
	if !present {
		return time.Time{}, nil
	}
	value, ok := new(big.Rat), len(raw) <= longestDate && numericDate.Match(raw)
	if ok {
		value, ok = value.SetString(string(raw))
	}
	if !ok || value.Cmp(big.NewRat(latestDate, 1)) > 0 {
		return time.Time{}, invalid(RuleMalformed, name+" is not a number of seconds")
	}
	seconds, rest := new(big.Int).QuoRem(value.Num(), value.Denom(), new(big.Int))
	if up && rest.Sign() > 0 {
		seconds.Add(seconds, big.NewInt(1))
	}
	return time.Unix(seconds.Int64(), 0).UTC(), nil
}
