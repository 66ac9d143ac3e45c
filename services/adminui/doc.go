// Package adminui is the operator's page: the state of the deployment in a browser, and a few ways to intervene.
//
// The server renders the page; it works without scripts. It shows states, counts and ids, never a patient's data, a subject
// or a token. A change takes two steps: a page that describes it, and the form on that page. The form carries a token that
// is valid for this browser and this action for an hour. Requests with an unknown Host and cross-site requests are refused.
//
// The page asks for no password: access is limited by the listener it is mounted on (docs/operators-page.md).
package adminui
