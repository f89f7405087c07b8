"use strict";

// What a page does after each close code of aiohttp_session_ws. The page in the README does so too.
const SESSION_ENDED = 4401;
const RECONNECT = 4403;
const TOO_MANY_CONNECTIONS = 4429;

const LIVED = 5; // seconds after which a connection resets the back-off
const LONGEST_WAIT = 30; // seconds

// Seconds after which to reconnect, or null: not by itself. After 4401 a page must load something
// or log in first, since its session is over; after 4429 another tab has taken its place.
function reconnectAfter(code, failures) {
  if (code === SESSION_ENDED || code === TOO_MANY_CONNECTIONS) return null;
  if (code === RECONNECT && failures === 0) return Math.random(); // or all would return at once
  return backOff(failures);
}

function backOff(failures) {
  return Math.min(LONGEST_WAIT, 0.5 * 2 ** failures) * (0.5 + Math.random() / 2);
}
