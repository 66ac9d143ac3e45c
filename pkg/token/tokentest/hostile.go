package tokentest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"time"
)

// Genuine describes a valid token. Its header has alg, kid and typ JWT.
type Genuine struct {
	Alg, KID string
	Key      crypto.Signer
	Claims   Members
	Now      time.Time // the verifier's time; it tolerates a skew of one minute
	Trap     string    // a URL that a verifier must not fetch
}

// Token is the genuine token.
func (g Genuine) Token() string { return g.signed(g.Claims) }

func (g Genuine) signed(claims Members) string {
	return Forge(g.Alg, g.Key, g.header(), claims.String())
}

func (g Genuine) header(more ...string) string {
	return fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"JWT"%s}`, g.Alg, g.KID, strings.Join(more, ""))
}

// Hostile returns variants of the genuine token that every verifier of access tokens or client assertions must refuse.
// (RFC 8725, Z-02, Z-03, B-15, B-18 to B-20, B-22 to B-24.)
func (g Genuine) Hostile() map[string]string {
	good := g.Claims.String()
	valid := g.Token()
	parts := strings.Split(valid, ".")
	other := strings.Split(g.signed(g.Claims.With("sub", "mallory")), ".")
	stranger := another(g.Key)
	der := must(x509.MarshalPKIXPublicKey(g.Key.Public()))
	aud, iss := g.Claims["aud"].(string), g.Claims["iss"].(string)

	seg := func(s string) string { return b64.EncodeToString([]byte(s)) }
	join := func(header, payload, signature string) string { return header + "." + payload + "." + signature }
	headed := func(header string) string { return Forge(g.Alg, g.Key, header, good) }
	kid := func(value string) string { return headed(fmt.Sprintf(`{"alg":%q,"kid":%s}`, g.Alg, value)) }
	payload := func(p string) string { return Forge(g.Alg, g.Key, g.header(), p) }
	with := func(name string, value any) string { return g.signed(g.Claims.With(name, value)) }
	without := func(name string) string { return g.signed(g.Claims.Without(name)) }
	literal := func(name, value string) string { // a claim as literal JSON
		return payload(strings.TrimSuffix(g.Claims.Without(name).String(), "}") + `,"` + name + `":` + value + `}`)
	}
	twice := func(name, value string) string {
		return payload(strings.TrimSuffix(good, "}") + `,"` + name + `":` + value + `}`)
	}
	byStranger := func(header string) string { return Forge(g.Alg, stranger, header, good) }
	ownKey := func(kid string) string {
		return fmt.Sprintf(`{"alg":%q,"kid":%q,"jwk":%s}`, g.Alg, kid, JWK(kid, stranger))
	}
	at := func(d time.Duration) int64 { return g.Now.Add(d).Unix() }
	mac := func(key []byte) string {
		return Forge("HS256", key, fmt.Sprintf(`{"alg":"HS256","kid":%q}`, g.KID), good)
	}

	all := map[string]string{
		"a word":                      "invalidToken",
		"null":                        "null",
		"only dots":                   "..",
		"two parts":                   parts[0] + "." + parts[1],
		"four parts":                  valid + "." + parts[2],
		"five parts":                  valid + "." + parts[2] + "." + parts[2],
		"two tokens":                  valid + "," + valid,
		"two tokens, a blank":         valid + " " + valid,
		"Bearer before it":            "Bearer " + valid,
		"a parameter":                 `token="` + valid + `"`,
		"padding":                     valid + "=",
		"standard base64":             parts[0] + "+/." + parts[1] + "." + parts[2],
		"percent-encoded":             strings.ReplaceAll(valid, ".", "%2E"),
		"in angle brackets":           "<" + valid + ">",
		"not ASCII":                   valid + "é",
		"in upper case":               strings.ToUpper(valid),
		"16 KiB":                      with("pad", strings.Repeat("x", 16<<10)),
		"JSON serialised":             Members{"payload": parts[1], "protected": parts[0], "signature": parts[2]}.String(),
		"claims in the clear":         good,
		"encrypted":                   "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ.AAAA.AAAA.AAAA.AAAA",
		"header null":                 headed("null"),
		"header an array":             headed("[]"),
		"payload null":                payload("null"),
		"payload no JSON":             payload("claims"),
		"payload empty":               payload("{}"),
		"payload an array":            payload("[" + good + "]"),
		"payload twice":               payload(good + good),
		"payload not UTF-8":           payload(strings.Replace(good, `"sub":"`, `"sub":"`+"\xff", 1)),
		"nested":                      Forge(g.Alg, g.Key, g.header(`,"cty":"JWT"`), valid),
		"nested without cty":          payload(`"` + valid + `"`),
		"cty":                         headed(g.header(`,"cty":"JWT"`)),
		"compressed":                  headed(g.header(`,"zip":"DEF"`)),
		"encrypted by its header":     headed(g.header(`,"enc":"A256GCM"`)),
		"crit":                        headed(g.header(`,"crit":["exp"],"exp":1`)),
		"empty crit":                  headed(g.header(`,"crit":[]`)),
		"b64 false":                   headed(g.header(`,"b64":false`)),
		"b64 false in crit":           headed(g.header(`,"b64":false,"crit":["b64"]`)),
		"logout token":                headed(fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"logout+jwt"}`, g.Alg, g.KID)),
		"typ empty":                   headed(fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"application/"}`, g.Alg, g.KID)),
		"typ a number":                headed(fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":7}`, g.Alg, g.KID)),
		"alg none":                    join(seg(`{"alg":"none"}`), parts[1], ""),
		"alg none, kid kept":          join(seg(fmt.Sprintf(`{"alg":"none","kid":%q}`, g.KID)), parts[1], ""),
		"alg none, signature kept":    join(seg(fmt.Sprintf(`{"alg":"none","kid":%q}`, g.KID)), parts[1], parts[2]),
		"alg NONE":                    join(seg(fmt.Sprintf(`{"alg":"NONE","kid":%q}`, g.KID)), parts[1], parts[2]),
		"alg nOnE":                    join(seg(`{"alg":"nOnE"}`), parts[1], "AAAA"),
		"alg missing":                 headed(fmt.Sprintf(`{"kid":%q}`, g.KID)),
		"alg empty":                   headed(fmt.Sprintf(`{"alg":"","kid":%q}`, g.KID)),
		"alg null":                    headed(fmt.Sprintf(`{"alg":null,"kid":%q}`, g.KID)),
		"alg an array":                headed(fmt.Sprintf(`{"alg":[%q],"kid":%q}`, g.Alg, g.KID)),
		"alg in lower case":           headed(fmt.Sprintf(`{"alg":%q,"kid":%q}`, strings.ToLower(g.Alg), g.KID)),
		"alg twice":                   headed(g.header(`,"alg":"none"`)),
		"alg twice, the same":         headed(g.header(fmt.Sprintf(`,"alg":%q`, g.Alg))),
		"alg twice, none first":       headed(fmt.Sprintf(`{"alg":"none","kid":%q,"alg":%q}`, g.KID, g.Alg)),
		"alg twice, escaped":          headed(g.header(`,"\u0061lg":"none"`)),
		"HS256 with the public DER":   mac(der),
		"HS256 with the public PEM":   mac(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
		"HS256 with the public bytes": mac(publicBytes(g.Key)),
		"HS256 without a secret":      mac(nil),
		"kid unknown":                 kid(`"unheard-of"`),
		"kid empty":                   kid(`""`),
		"kid a number":                kid("1"),
		"kid null":                    kid("null"),
		"kid of a file":               kid(`"../../../../dev/null"`),
		"kid with SQL":                kid(fmt.Sprintf("%q", g.KID+"' OR '1'='1")),
		"kid in another case":         kid(fmt.Sprintf("%q", strings.ToUpper(g.KID))),
		"signature missing":           join(parts[0], parts[1], ""),
		"signature of zeros":          join(parts[0], parts[1], b64.EncodeToString(make([]byte, b64.DecodedLen(len(parts[2]))))),
		"signature of another token":  join(parts[0], parts[1], other[2]),
		"signature cut":               valid[:len(valid)-4],
		"signature altered":           valid[:len(valid)-8] + "AAAAAAAA",
		"payload of another token":    join(parts[0], other[1], parts[2]),
		"payload altered":             join(parts[0], seg(g.Claims.With("sub", "admin").String()), parts[2]),
		"scope altered":               join(parts[0], seg(g.Claims.With("scope", "system/*.cruds").String()), parts[2]),
		"header altered":              join(seg(strings.Replace(g.header(), "JWT", "jwt", 1)), parts[1], parts[2]),
		"another key":                 byStranger(g.header()),
		"another key, embedded":       byStranger(ownKey("mine")),
		"another key, kid embedded":   byStranger(ownKey(g.KID)),
		"another key, jku":            byStranger(fmt.Sprintf(`{"alg":%q,"kid":"mine","jku":%q}`, g.Alg, g.Trap)),
		"another key, x5u":            byStranger(fmt.Sprintf(`{"alg":%q,"kid":"mine","x5u":%q}`, g.Alg, g.Trap)),
		"iss unknown":                 with("iss", "https://evil.example"),
		"iss with a slash":            with("iss", iss+"/"),
		"iss in upper case":           with("iss", strings.ToUpper(iss)),
		"iss missing":                 without("iss"),
		"iss an array":                with("iss", []string{iss}),
		"iss twice":                   twice("iss", fmt.Sprintf("%q", iss)),
		"iss twice, another":          twice("iss", `"https://two.example.org"`),
		"iss in the wrong case":       g.signed(g.Claims.Without("iss").With("ISS", iss)),
		"aud of another service":      with("aud", "https://other.example"),
		"aud with a slash":            with("aud", aud+"/"),
		"aud with ours as a prefix":   with("aud", aud+".evil.example"),
		"aud missing":                 without("aud"),
		"aud null":                    with("aud", nil),
		"aud empty":                   with("aud", []string{}),
		"aud an array without ours":   with("aud", []string{"urn:x", "urn:y"}),
		"aud an array with a number":  with("aud", []any{aud, 1}),
		"aud an object":               with("aud", Members{"a": aud}),
		"sub missing":                 without("sub"),
		"sub empty":                   with("sub", ""),
		"sub null":                    with("sub", nil),
		"sub a number":                with("sub", 7),
		"sub an array":                with("sub", []any{g.Claims["sub"]}),
		"sub twice":                   twice("sub", `"admin"`),
		"sub with a NUL":              literal("sub", `"client\u0000"`),
		"sub of half a character":     literal("sub", `"client-\ud800"`),
		"sub very long":               with("sub", strings.Repeat("a", 1025)),
		"exp missing":                 without("exp"),
		"exp null":                    with("exp", nil),
		"expired just now":            with("exp", at(-time.Minute)),
		"expired a second ago":        with("exp", at(-time.Minute-time.Second)),
		"expired long ago":            with("exp", at(-1000*time.Hour)),
		"exp zero":                    literal("exp", "0"),
		"exp a string":                with("exp", fmt.Sprint(at(time.Minute))),
		"expired by a fraction":       literal("exp", fmt.Sprintf("%d.9", at(-time.Minute))),
		"expired, an exponent":        literal("exp", fmt.Sprintf("%de-1", 10*at(-time.Minute)+9)),
		"exp minus zero":              literal("exp", "-0.0"),
		"exp 1e99":                    literal("exp", "1e99"),
		"exp of many digits":          literal("exp", fmt.Sprintf("%d.%s", at(time.Minute), strings.Repeat("1", 64))),
		"exp negative":                literal("exp", "-1"),
		"exp 1e308":                   literal("exp", "1e308"),
		"exp beyond all numbers":      literal("exp", "1e999"),
		"exp beyond int64":            literal("exp", "18446744073709551615"),
		"exp in milliseconds":         literal("exp", fmt.Sprint(g.Now.Add(time.Minute).UnixMilli())),
		"exp true":                    literal("exp", "true"),
		"exp twice":                   twice("exp", fmt.Sprint(at(time.Minute))),
		"nbf ahead":                   with("nbf", at(61*time.Second)),
		"nbf ahead by a fraction":     literal("nbf", fmt.Sprintf("%d.1", at(time.Minute))),
		"nbf ahead, an exponent":      literal("nbf", fmt.Sprintf("%dE-1", 10*at(time.Minute)+1)),
		"iat ahead by a fraction":     literal("iat", fmt.Sprintf("%d.001", at(time.Minute))),
		"nbf a string":                with("nbf", "1"),
		"iat ahead":                   with("iat", at(61*time.Second)),
		"iat null":                    with("iat", nil),
	}
	for _, alg := range []string{
		"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "ES256K", "EdDSA", "HS256", "HS384",
	} {
		if alg != g.Alg {
			all["alg "+alg] = headed(fmt.Sprintf(`{"alg":%q,"kid":%q}`, alg, g.KID))
		}
	}
	return all
}

// another returns a new key of the same kind.
func another(key crypto.Signer) crypto.Signer {
	if private, ok := key.(*ecdsa.PrivateKey); ok {
		return EC(private.Curve)
	}
	return RSA(key.(*rsa.PrivateKey).N.BitLen())
}

// publicBytes returns the point of an EC key or the modulus of an RSA key.
func publicBytes(key crypto.Signer) []byte {
	if private, ok := key.(*ecdsa.PrivateKey); ok {
		return must(private.PublicKey.Bytes())
	}
	return key.(*rsa.PrivateKey).N.Bytes()
}
