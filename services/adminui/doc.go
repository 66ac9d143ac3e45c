// Package adminui is the operator's page: what the service is doing, and a few ways to intervene, in a browser.
//
// It is rendered by the server and works without scripts. It shows states, counts and ids, never a patient's data, a
// subject or a token. A change takes two steps, a page that says what will happen and a form on it, and the form has to
// come from that page: it carries a token that is good for this browser, this step and an hour. Requests by a name that is
// not this server's, and requests that another site has caused, are refused.
//
// Who may open the page is decided by who reaches the listener it is mounted on: see Config and docs/operators-page.md.
package adminui
